"""A stand-in for Google Cloud Storage on this machine: `python gcs_server.py` prints its address.

gcp-storage-emulator, and what it lacks of the JSON API but TensorStore relies on: conditional
requests (ifGenerationMatch, ifGenerationNotMatch), the generation in a download's header, and
listings between two names.
"""

import logging
import re
from functools import partial
from http import HTTPStatus, server
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler, Router
from gcp_storage_emulator.storage import Storage

OBJECT = re.compile(r"(?:/upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?")


class ListedBetween(Storage):
    between = ("", "")

    def get_file_list(self, *args, **kwargs):
        files, prefixes = super().get_file_list(*args, **kwargs)
        first, end = self.between
        kept = [f for f in files if first <= f["name"] and (not end or f["name"] < end)]
        return kept, prefixes


class Handler(RequestHandler):
    def _generation(self, bucket: str, name: str) -> int:
        try:
            return int(self.storage.get_file_obj(bucket, name)["generation"])
        except Exception:
            return 0

    def _do(self, method: str) -> None:
        url = urlparse(self.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.storage.between = asked.get("startOffset", ""), asked.get("endOffset", "")
        self._now = 0
        if found := OBJECT.fullmatch(url.path):
            self._now = self._generation(found[1], unquote(found[2] or asked.get("name", "")))
            if int(asked.get("ifGenerationMatch", self._now)) != self._now:
                return self._refuse(HTTPStatus.PRECONDITION_FAILED)
            if int(asked.get("ifGenerationNotMatch", -1)) == self._now:
                return self._refuse(HTTPStatus.NOT_MODIFIED)
        Router(self).handle(method)

    def _refuse(self, status: HTTPStatus) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self) -> None:
        if self.command == "GET" and self._now:
            self.send_header("x-goog-generation", str(self._now))
        super().end_headers()

    def do_GET(self) -> None:
        self._do("GET")

    def do_POST(self) -> None:
        self._do("POST")

    def do_DELETE(self) -> None:
        self._do("DELETE")


class Quiet(server.HTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A client that hangs up in the middle of an answer is nothing to report."""


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    storage = ListedBetween(use_memory_fs=True)
    buckets.create_bucket("bucket", storage)
    listening = Quiet(("127.0.0.1", 0), partial(Handler, storage))
    print(f"http://127.0.0.1:{listening.server_port}", flush=True)
    listening.serve_forever()
