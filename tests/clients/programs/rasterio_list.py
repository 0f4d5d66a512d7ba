"""rasterio (GDAL, through libcurl) reads from a bucket; that there is no such raster says that it got in."""

import os
import sys

import rasterio
from rasterio.errors import RasterioIOError

settings = {
    "AWS_S3_ENDPOINT": os.environ["ENDPOINT"].partition("//")[2],
    "AWS_HTTPS": "NO",
    "AWS_VIRTUAL_HOSTING": "FALSE",
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
}
with rasterio.Env(**settings):
    try:
        rasterio.open(f"s3://{os.environ['BUCKET']}/none.tif")
    except RasterioIOError as error:
        print(error)
        sys.exit(0 if "does not exist" in str(error) else 1)
