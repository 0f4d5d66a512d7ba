"""pyarrow (the SDK for C++) lists a bucket."""

import os

from pyarrow import fs

store = fs.S3FileSystem(endpoint_override=os.environ["ENDPOINT"].partition("//")[2], scheme="http")
print(store.get_file_info(fs.FileSelector(os.environ["BUCKET"])))
