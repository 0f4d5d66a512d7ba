"""awscrt (aws-c-auth, in C) finds credentials and signs a request with them; the standard library sends it."""

import os
import urllib.request

from awscrt.auth import AwsCredentialsProvider, AwsSigningConfig, aws_sign_request
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

group = EventLoopGroup(1)
provider = AwsCredentialsProvider.new_default_chain(ClientBootstrap(group, DefaultHostResolver(group)))
endpoint = os.environ["ENDPOINT"]
request = HttpRequest("GET", "/", HttpHeaders([("Host", endpoint.partition("//")[2])]))
settings = AwsSigningConfig(credentials_provider=provider, region="us-east-1", service="s3")
signed = aws_sign_request(request, settings).result(60)
answer = urllib.request.urlopen(urllib.request.Request(endpoint + "/", headers=dict(signed.headers)))
print(answer.status)
