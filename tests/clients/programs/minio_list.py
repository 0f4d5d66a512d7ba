"""minio-py asks S3 for the buckets."""

import os

from minio import Minio
from minio.credentials import IamAwsProvider

endpoint = os.environ["ENDPOINT"].partition("//")[2]
print(Minio(endpoint, secure=False, region="us-east-1", credentials=IamAwsProvider()).list_buckets())
