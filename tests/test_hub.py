"""Encoders go to the hub and come back equal; the hub is a stand-in on this machine with the hub's file layout."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import rlpre
from rlpre import hub
from rlpre.errors import RlpreError

huggingface_hub = pytest.importorskip("huggingface_hub")
SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for when it creates a repository, uploads files and downloads them."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/repos/create"):
            address = f"http://{self.headers['Host']}/user/name"
            self._answer({"url": address, "id": "user/name", "name": "user/name"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/user/name/commit/{SHA}"
            self._answer({"commitUrl": address, "commitOid": SHA, "success": True})
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if "/resolve/" in path and path.startswith("/user/name/") and name in self.files:
            self._answer(self.files[name], ETag=f'"{name}-1"', X_Repo_Commit=SHA)
        elif path.startswith("/api/models/user/name"):
            self._answer({"id": "user/name", "sha": SHA, "siblings": [{"rfilename": name} for name in self.files]})
        else:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 (the name that http.server looks up)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub on this machine, and an empty cache."""
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **options: real(endpoint=address, **{**options, "token": "t"}))
    fetch = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *names, **options: fetch(*names, endpoint=address, cache_dir=tmp_path / "cache", **options),
    )
    yield Hub.files
    server.shutdown()
    thread.join()
    server.server_close()


def encoder() -> rlpre.Encoder:
    torch.manual_seed(0)
    made = rlpre.Encoder("cnn", rlpre.InputSpec((3, 36, 36)), features=16)
    made.pretraining = {"objective": "temporal", "steps": 7, "frames": "0123abcd", "probes": {"front": 0.75}}
    made.pretraining["control"] = {"front": 0.5}
    return made


def test_round_trip(stand_in: dict[str, bytes], tmp_path: Path) -> None:
    sent = encoder()
    assert SHA in rlpre.push_to_hub(sent, "user/name", license="apache-2.0")
    assert set(stand_in) == {"README.md", "config.json", "model.safetensors"}
    received = rlpre.Encoder.from_hub("user/name")
    assert received.fingerprint() == sent.fingerprint()
    assert received.pretraining == sent.pretraining
    assert rlpre.policy_kwargs("hub:user/name")["features_extractor_kwargs"]  # as all calls that read an encoder
    assert (tmp_path / "cache/models--user--name/snapshots" / SHA / "config.json").exists()
    card = stand_in["README.md"].decode()
    for part in ("license: apache-2.0", "| objective | `temporal` |", "| front | 0.75 | 0.50 |", "3 x 36 x 36"):
        assert part in card


def test_a_directory_and_the_result_of_pretraining_are_pushed_too(stand_in: dict[str, bytes], tmp_path: Path) -> None:
    sent = encoder()
    rlpre.push_to_hub(sent.save(tmp_path / "checkpoint"), "user/name")
    assert rlpre.Encoder.from_hub("user/name").fingerprint() == sent.fingerprint()


@pytest.mark.parametrize("name", ["name", "user/", "/name", "a/b/c"])
def test_wrong_names(name: str) -> None:
    for call in (lambda: rlpre.push_to_hub(encoder(), name), lambda: hub.download(name)):
        with pytest.raises(RlpreError, match="is not a name on the hub: give 'user/name'"):
            call()


def test_what_cannot_be_pushed_or_found(stand_in: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match="Linear is not an encoder"):
        rlpre.push_to_hub(torch.nn.Linear(1, 1), "user/name")
    with pytest.raises(RlpreError, match=r"holds no config\.json"):
        rlpre.push_to_hub(tmp_path, "user/name")
    with pytest.raises(RlpreError, match="no checkpoint can be downloaded from 'user/other'"):
        rlpre.Encoder.from_hub("user/other")
    assert stand_in == {}


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(RlpreError, match=r"pip install 'rlpre\[hub\]'"):
        hub.download("user/name")
