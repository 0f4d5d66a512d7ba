# The SDK for Ruby, version 3, asks S3 for the buckets.
require "aws-sdk-s3"
begin
  puts Aws::S3::Client.new(endpoint: ENV["ENDPOINT"], force_path_style: true).list_buckets.buckets
rescue Aws::Errors::MissingCredentialsError, Aws::Errors::ServiceError => e
  warn "#{e.class}: #{e.message}"
  exit 1
end
