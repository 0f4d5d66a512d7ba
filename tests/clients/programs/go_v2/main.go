// The SDK for Go, version 2, asks STS who it is.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func main() {
	ctx := context.Background()
	settings, err := config.LoadDefaultConfig(ctx)
	if err == nil {
		resolver := sts.EndpointResolverFromURL(os.Getenv("ENDPOINT"), func(e *aws.Endpoint) { e.SigningRegion = "us-east-1" })
		var answer *sts.GetCallerIdentityOutput
		answer, err = sts.NewFromConfig(settings, sts.WithEndpointResolver(resolver)).GetCallerIdentity(ctx, nil)
		if err == nil {
			fmt.Println(*answer.Arn)
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
