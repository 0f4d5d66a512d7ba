// The SDK for Go, version 1, asks S3 for the buckets.
package main

import (
	"fmt"
	"os"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/s3"
)

func main() {
	settings := aws.NewConfig().WithEndpoint(os.Getenv("ENDPOINT")).WithS3ForcePathStyle(true)
	answer, err := s3.New(session.Must(session.NewSession(settings))).ListBuckets(nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(answer.Buckets)
}
