"""boto3 1.9 asks S3 for the buckets. The Python it was written for kept the ABCs in collections too."""

import collections
import collections.abc
import os

for _name in collections.abc.__all__:
    setattr(collections, _name, getattr(collections.abc, _name))

import boto3  # noqa: E402 - after what it misses is there

print(boto3.client("s3", endpoint_url=os.environ["ENDPOINT"]).list_buckets()["Buckets"])
