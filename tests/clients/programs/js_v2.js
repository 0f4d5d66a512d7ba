// The SDK for JavaScript, version 2, asks S3 for the buckets.
const AWS = require("aws-sdk");
const s3 = new AWS.S3({ endpoint: process.env.ENDPOINT, s3ForcePathStyle: true });
s3.listBuckets((error, data) => {
  if (error) {
    console.error(`${error.code}: ${error.message}`);
    process.exit(1);
  }
  console.log(data.Buckets);
});
