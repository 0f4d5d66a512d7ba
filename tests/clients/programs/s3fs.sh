#!/bin/sh
# s3fs mounts a bucket, in a mount namespace that ends with this script, and lists it.
set -eu
mkdir -p "$HOME/mnt"
s3fs "$BUCKET" "$HOME/mnt" -o iam_role=auto,url="$ENDPOINT",use_path_request_style,endpoint=us-east-1 -f -o dbglevel=err &
for _ in $(seq 200); do
  if ! kill -0 $! 2>/dev/null; then wait $!; exit 1; fi
  if grep -q " $HOME/mnt fuse.s3fs " /proc/self/mounts; then
    if ! timeout 20 ls -l "$HOME/mnt"; then
      # It ends by itself then, and says why.
      timeout 20 tail --pid=$! -f /dev/null
      exit 1
    fi
    kill $!
    exit 0
  fi
  sleep 0.05
done
exit 1
