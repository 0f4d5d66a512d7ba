"""obstore (object_store, in Rust) lists a bucket."""

import os

import obstore
from obstore.store import S3Store

store = S3Store(
    os.environ["BUCKET"],
    endpoint=os.environ["ENDPOINT"],
    region="us-east-1",
    virtual_hosted_style_request=False,
    client_options={"allow_http": True},
)
print(list(obstore.list(store)))
