"""aiobotocore asks S3 for the buckets."""

import asyncio
import os

from aiobotocore.session import get_session


async def main() -> None:
    async with get_session().create_client("s3", endpoint_url=os.environ["ENDPOINT"]) as client:
        print((await client.list_buckets())["Buckets"])


asyncio.run(main())
