"""boto3 asks S3 for the buckets."""

import os

import boto3

print(boto3.client("s3", endpoint_url=os.environ["ENDPOINT"]).list_buckets()["Buckets"])
