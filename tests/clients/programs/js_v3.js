// The SDK for JavaScript, version 3, asks STS who it is.
const { STSClient, GetCallerIdentityCommand } = require("@aws-sdk/client-sts");
new STSClient({ endpoint: process.env.ENDPOINT }).send(new GetCallerIdentityCommand({})).then(
  (data) => console.log(data.Arn),
  (error) => {
    console.error(`${error.name}: ${error.message}`);
    process.exit(1);
  },
);
