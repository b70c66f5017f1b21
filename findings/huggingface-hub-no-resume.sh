#!/usr/bin/env bash
# huggingface_hub does not go on with an interrupted download: what has arrived is deleted.
#
# Versions: huggingface_hub 2.4.0, over HTTP; 1.33.0 does the same; 0.36.0 went on where it was.
# Who meets it: programs that fetch gigabytes by hf_hub_download or snapshot_download. After Ctrl-C, a crash or a hub that goes
#   down each file begins at its first byte again. Its issue 4196, open, asks for more; the reason given is locks that some
#   file systems do not honour.
# Seen:
#   first try: ended, kept of 1048576 bytes: 0
#   second try began at byte: 0
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "huggingface_hub==2.4.0"
HF_HOME="$scratch/home" HF_HUB_DISABLE_PROGRESS_BARS=1 "$scratch/venv/bin/python" - <<'PYTHON'
import hashlib
import logging
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA, COMMIT = os.urandom(1 << 20), "0" * 40
SHA = hashlib.sha256(DATA).hexdigest()
sends = iter(["half", "none", "none", "none", "none", "none", "none", "all"])
offsets = []


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(200)

    def do_GET(self):
        what = next(sends)
        offsets.append(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if what == "none":
            self.close_connection = True
            return
        self.answer(200)
        self.wfile.write(DATA[: len(DATA) // 2] if what == "half" else DATA)
        self.close_connection = what == "half"

    def answer(self, status):
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{SHA}"')
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"

from huggingface_hub import constants, hf_hub_download

constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # by default 10 MB are written at a time
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

try:
    hf_hub_download("a/b", "weights.bin")
    ended = "not ended"
except Exception:
    ended = "ended"
kept = sum(path.stat().st_size for path in Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
print(f"first try: {ended}, kept of {len(DATA)} bytes: {kept}")
tries = len(offsets)
hf_hub_download("a/b", "weights.bin")
print("second try began at byte:", offsets[tries])
assert (ended, kept, offsets[tries]) == ("ended", 0, "0")
PYTHON
