"""An S3 on the loopback interface, by moto."""

import logging

import boto3
import s3fs
from moto.server import ThreadedMotoServer


class StorageServer:
    """Context manager. `environment` is what leads programs to it."""

    def __enter__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.environment = {
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*self._server.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # where credentials are looked for last, over the network
            "NO_PROXY": "127.0.0.1",
        }
        return self

    def __exit__(self, *_):
        s3fs.S3FileSystem.clear_instance_cache()
        self._server.stop()

    def put(self, bucket: str, files: dict[str, bytes]) -> str:
        """Makes a bucket of files; returns its address."""
        client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="somebody",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        for path, content in files.items():
            client.put_object(Bucket=bucket, Key=path, Body=content)
        return f"s3://{bucket}"
