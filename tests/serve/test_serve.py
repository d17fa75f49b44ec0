"""cinemae serve over HTTP: scores, errors, privacy, and many requests at once."""

import base64
import concurrent.futures
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image

from cinemae_jax import main
from cinemae_jax.commands import serve
from cinemae_jax.detector import bundle
from cinemae_jax.detector.api import OPINION, Detector
from cinemae_jax.detector.bundle import Bundle, TrainingView
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.detector.heatmap import STATEMENT
from cinemae_jax.serve import answers, app, body, server
from cinemae_jax.serve.guard import HEADERS
from tests.conftest import photo
from tests.helpers.odd_images import UNREADABLE
from tests.helpers.pictures import encoded
from tests.helpers.serving import MAX_BYTES, Gated, listening, running
from tests.helpers.small_detector import small_bundle

pytestmark = pytest.mark.slow

SEEN = TrainingView(("JPEG", "PNG"), (30, 50))
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def loaded(backbone_file: Path) -> Bundle:
    return small_bundle(backbone_file, seen=SEEN)


@pytest.fixture(scope="module")
def detector(loaded: Bundle) -> Detector:
    return serve.make_detector(loaded, runs=None, fpr=None)


@pytest.fixture(scope="module")
def client(detector: Detector) -> Iterator[httpx2.Client]:
    with running(detector) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """The command replaces the SIGTERM handler; this restores it for the other tests."""
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


def picture(seed: int = 0) -> bytes:
    return encoded(photo(np.random.default_rng(seed), ai=bool(seed % 2)))


def timeless(answer: dict) -> dict:
    return answer | {"seconds": 0}


# --- answers ------------------------------------------------------------------------------------


def test_an_answer_is_the_detectors_however_the_picture_is_sent(
    client: httpx2.Client, detector: Detector
) -> None:
    (expected,) = detector.predict(picture())
    sent = [
        client.post("/v1/predict", content=picture(), headers=PNG),
        client.post("/v1/predict", content=picture()),
        client.post("/v1/predict", content=iter([picture()[:100], picture()[100:]]), headers=PNG),
        client.post("/v1/predict", files={"image": ("holiday.png", picture(), "image/png")}),
    ]
    for response in sent:
        assert response.status_code == 200, response.text
        answer = response.json()
        row = expected.to_dict() | {"flags": list(expected.flags)}
        assert timeless(answer) == timeless(row | {"heatmap": None, "note": answer["note"]})
        assert OPINION in answer["note"]
        assert answer["uncertainty"] > 0
        assert answer["path"] == ""
        assert answer["seconds"] > 0


def test_a_map_and_stability_when_asked_for(client: httpx2.Client, detector: Detector) -> None:
    response = client.post("/v1/predict?heatmap=1&stability=true", content=picture())
    answer = response.json()
    (expected,) = detector.predict(picture(), stability=True)
    assert answer["stability"] == expected.stability
    shown = answer["heatmap"]
    kind, data = shown["png"].split(",")
    assert kind == "data:image/png;base64"
    anomaly = expected.lcas_map(score="mismatch")
    drawn = Image.open(io.BytesIO(base64.b64decode(data)))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(anomaly.overlay()))
    assert (shown["runs"], shown["score"]) == (anomaly.runs, "mismatch")
    assert shown["statement"] == STATEMENT
    assert shown["low"] < shown["high"]
    assert shown["hidden"] == [anomaly.shown.min(), anomaly.shown.max()]


def test_about_says_who_answers(client: httpx2.Client, detector: Detector, loaded: Bundle) -> None:
    assert client.get("/healthz").json() == {"status": "ready"}
    about = client.get("/v1/detector").json()
    assert f"{about['name']} {about['identity']}" == detector.name
    assert about["in_words"] == detector.in_words()
    assert about["calibration"] == detector.calibration.to_dict()
    assert (about["runs"], about["num_groups"]) == (8, 4)
    assert about["max_bytes"] == MAX_BYTES
    described = answers.about(detector, 1)
    assert described.seen is not None
    assert described.seen.shorter_sides == SEEN.shorter_sides


@pytest.mark.parametrize(("nature", "ai"), [(-1.0, 1.0), (1.0, -1.0), (None, 0.5), (0.5, None)])
def test_the_band_of_probabilities_gives_the_verdicts(
    nature: float | None, ai: float | None
) -> None:
    calibration = Calibration(0.7, 0.1, ai, nature, 0.05, 0.05, 50, 50)
    below, above = answers.band(calibration)
    for z in np.linspace(-3, 3, 101):
        p = calibration.probability(z)
        expected = "ai" if above is not None and p > above else "inconclusive"
        expected = "nature" if below is not None and p < below else expected
        assert calibration.verdict(z) == expected


# --- refusals -----------------------------------------------------------------------------------


def refusal(response: httpx2.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return response.json()["error"]


@pytest.mark.parametrize("name", sorted(UNREADABLE.keys() - {"empty.jpg"}))
def test_what_cannot_be_read_is_refused_with_the_decoders_reason(
    name: str, client: httpx2.Client, detector: Detector
) -> None:
    data = UNREADABLE[name][0]
    (expected,) = detector.predict(data)
    assert refusal(client.post("/v1/predict", content=data), 422) == expected.error


def test_requests_that_make_no_sense_are_told_so(client: httpx2.Client) -> None:
    def post(**request: object) -> httpx2.Response:
        return client.post("/v1/predict", **request)

    file = ("a.png", picture(), "image/png")
    assert "body is empty" in refusal(post(content=b"", headers=PNG), 400)
    assert "body is empty" in refusal(post(files={"image": ("a.png", b"")}), 400)
    assert "text/plain" in refusal(
        post(content=picture(), headers={"Content-Type": "text/plain"}), 415
    )
    assert "application/x-www-form-urlencoded" in refusal(post(data={"image": "x"}), 415)
    assert "no file in 'image'" in refusal(post(files={"picture": file}), 400)
    assert "Too many files" in refusal(post(files=[("image", file), ("image", file)]), 400)
    assert "one file" in refusal(post(files={"image": file}, data={"more": "x"}), 400)
    form = {"Content-Type": "multipart/form-data"}
    assert "boundary" in refusal(post(content=picture(), headers=form), 400)
    cut = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refusal(post(content=b"junk", headers=cut), 400)
    for query in ("heatmaps=1", "heatmap=maybe", "runs=4"):
        message = refusal(client.post(f"/v1/predict?{query}", content=picture()), 400)
        assert query.partition("=")[0] in message
        assert "heatmap, stability" in message
    assert refusal(client.get("/v1/predict"), 405)
    assert refusal(client.get("/v1/nothing"), 404)
    assert refusal(client.get("/page/../app.py"), 404)
    assert refusal(client.get("/docs"), 404)


def test_a_large_body_is_refused_whether_announced_or_not(client: httpx2.Client) -> None:
    large = b"x" * (MAX_BYTES + 1)
    for request in (
        {"content": large},
        {"content": iter([large[: MAX_BYTES // 2]] * 3)},  # chunked: no length
        {"files": {"image": ("a.png", large)}},
    ):
        assert f"{MAX_BYTES:,} bytes" in refusal(client.post("/v1/predict", **request), 413)


def exchange(client: httpx2.Client, head: str, sent: bytes) -> bytes:
    """The start of what a raw request is answered."""
    address = urlsplit(str(client.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        start = f"POST /v1/predict HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n\r\n"
        connection.sendall(start.encode() + sent)
        return connection.recv(4096)


def test_what_is_announced_is_refused_before_it_is_sent_and_not_believed(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = exchange(client, f"Content-Length: {MAX_BYTES + 1}\r\nExpect: 100-continue", b"")
    assert refused.startswith(b"HTTP/1.1 413")
    short = exchange(client, f"Content-Length: {len(picture()) // 2}", picture())
    assert short.startswith(b"HTTP/1.1 422")
    monkeypatch.setattr(body, "READ_SECONDS", 0.2)
    late = exchange(client, "Content-Length: 999", b"half")
    assert late.startswith(b"HTTP/1.1 408")


def test_a_detector_without_decoder_has_no_maps(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "has_heatmaps", lambda _: False)
    with running(detector) as url:
        assert httpx2.get(f"{url}/v1/detector").json()["heatmaps"] is False
        response = httpx2.post(f"{url}/v1/predict?heatmap=1", content=picture())
        assert "no decoder" in refusal(response, 400)


def test_a_failure_of_the_program_is_said_and_survived(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    with running(detector) as url:
        with monkeypatch.context() as patch:
            patch.setattr(answers, "judge", broken)
            response = httpx2.post(f"{url}/v1/predict", content=picture())
        assert "server failed" in refusal(response, 500)
        assert httpx2.post(f"{url}/v1/predict", content=picture()).status_code == 200


# --- privacy ------------------------------------------------------------------------------------


def test_nothing_that_is_sent_touches_the_disk_or_the_log(
    client: httpx2.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def spilled(*_: object) -> None:
        raise AssertionError("written to a temporary file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", spilled)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 256, (900, 1000, 3), dtype=np.uint8)
    data = encoded(noise)
    assert 2_000_000 < len(data) < MAX_BYTES
    for request in ({"content": data}, {"files": {"image": ("my secret.png", data)}}):
        assert client.post("/v1/predict", **request).status_code == 200
        assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_other_sites_and_other_names_are_turned_away(client: httpx2.Client) -> None:
    own = f"http://{client.base_url.netloc.decode()}"

    def post(**headers: str) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post("/v1/predict", content=picture(), headers=named)

    assert post(Origin=own, Sec_Fetch_Site="same-origin").status_code == 200
    for origin in ("https://evil.example", "null", "http://localhost:1", "http://[bad"):
        assert "may not use" in refusal(post(Origin=origin), 403)
    assert "may not use" in refusal(post(Sec_Fetch_Site="cross-site"), 403)
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "", "[::1"):
        assert "this machine only" in refusal(post(Host=host), 403)
    for host in ("localhost:9999", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert post(Host=host).status_code == 200


def test_an_open_server_knows_its_own_names_and_addresses(detector: Detector) -> None:
    names = serve.names_of("0.0.0.0")
    made = app.create(detector, max_bytes=MAX_BYTES, queue=2, hosts=names, addresses=True)
    with listening(made) as url:
        for host, status in (
            ("localhost", 200),
            (socket.gethostname(), 200),
            ("192.0.2.7:8000", 200),
            ("[2001:db8::1]:8000", 200),
            ("evil.example", 403),
        ):
            headers = {"Host": host, "Origin": f"http://{host}"}
            response = httpx2.post(f"{url}/v1/predict", content=picture(), headers=headers)
            assert response.status_code == status, host
        assert "--allow-host" in response.json()["error"]


def test_head_is_answered_like_get_without_a_body(client: httpx2.Client) -> None:
    for path in ("/", "/healthz", "/v1/detector", "/page/page.js"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"] == client.get(path).headers["content-type"]


def test_every_answer_is_sealed(client: httpx2.Client) -> None:
    for response in (
        client.get("/"),
        client.get("/page/page.js"),
        client.get("/nothing"),
        client.get("/healthz", headers={"Host": "evil.example"}),
        client.post("/v1/predict", content=b"no picture"),
        client.post("/v1/predict", content=b"x", headers={"Origin": "http://[bad"}),
    ):
        for name, value in HEADERS.items():
            assert response.headers[name] == value
        assert "access-control-allow-origin" not in response.headers


def test_the_page_names_no_other_host() -> None:
    files = list(app.PAGE.iterdir())
    assert {file.suffix for file in files} == {".html", ".css", ".js", ".svg"}
    for file in files:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, never loaded
        assert not re.search(r"https?:|//[a-z]|style=|onclick", text), file


def test_the_schema_describes_requests_and_refusals(client: httpx2.Client) -> None:
    schema = client.get("/openapi.json").json()
    post = schema["paths"]["/v1/predict"]["post"]
    assert set(post["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
    }
    assert {parameter["name"] for parameter in post["parameters"]} == {"heatmap", "stability"}
    assert set(post["responses"]) == {"200", *map(str, app.REFUSALS)}
    fields = schema["components"]["schemas"]["Answer"]["properties"]
    assert fields.keys() == client.post("/v1/predict", content=picture()).json().keys()


# --- many at once -------------------------------------------------------------------------------


def test_twenty_at_once_are_neither_lost_nor_mixed_up(
    client: httpx2.Client, detector: Detector
) -> None:
    pictures = [picture(seed) for seed in range(20)]
    expected = [(one.example_id, one.logit) for one in detector.predict(pictures)]
    assert len(set(expected)) == 20

    def ask(data: bytes) -> tuple[int, float]:
        answer = client.post("/v1/predict", content=data).json()
        return answer["example_id"], answer["logit"]

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, pictures)) == expected


def test_a_full_queue_says_when_to_come_again(detector: Detector) -> None:
    gated = Gated(detector)
    with (
        running(gated, queue=3) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
        concurrent.futures.ThreadPoolExecutor(5) as pool,
    ):
        asked = [pool.submit(client.post, "/v1/predict", content=picture(i)) for i in range(5)]
        answers = (future.result() for future in concurrent.futures.as_completed(asked))
        for full in (next(answers), next(answers)):
            assert "queue is full" in refusal(full, 503)
            assert int(full.headers["Retry-After"]) > 0
        assert client.get("/healthz").status_code == 200
        gated.gate.set()
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert client.post("/v1/predict", content=picture()).status_code == 200


def connected(url: str, sent: bytes = b"") -> socket.socket:
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port), timeout=10)
    connection.sendall(sent)
    return connection


def test_silent_senders_lose_their_places(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "SILENT_SECONDS", 0.3)
    with running(detector, queue=3) as url, contextlib.ExitStack() as open_:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        silent = f"{head}Content-Length: 99\r\n\r\nhalf".encode()
        senders = [open_.enter_context(connected(url, silent)) for _ in range(3)]
        assert all(one.recv(99).startswith(b"HTTP/1.1 408") for one in senders)
        assert httpx2.post(f"{url}/v1/predict", content=picture(), timeout=30).status_code == 200


def test_idle_and_half_sent_connections_are_closed(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    with running(detector) as url:
        whole = f"GET /healthz HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()
        for sent in (b"", b"GET / HT", b"POST /v1/predict HTTP/1.1\r\nHost: x", whole + b"GET /h"):
            with connected(url, sent) as connection:
                received = connection.makefile("rb").read()  # until it is closed
            assert received.startswith(b"HTTP/1.1 200") == (sent[:3] == b"GET" and len(sent) > 20)


def test_who_waits_when_the_server_stops_is_told(detector: Detector) -> None:
    gated, stop = Gated(detector), threading.Event()
    made = app.create(gated, max_bytes=MAX_BYTES, queue=9, hosts=serve.LOOPBACK, stop=stop)
    with listening(made) as url, concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(httpx2.post, f"{url}/v1/predict", content=picture(i), timeout=30)
            for i in range(3)
        ]
        assert gated.came.acquire(timeout=10)
        stop.set()
        gated.gate.set()
        statuses = sorted(future.result().status_code for future in asked)
    assert statuses == [200, 503, 503]


def test_sixty_requests_at_once_are_all_answered(detector: Detector) -> None:
    with running(detector, queue=60) as url, concurrent.futures.ThreadPoolExecutor(60) as pool:
        pictures = [picture(i % 5) for i in range(60)]

        def ask(data: bytes) -> float:
            answer = httpx2.post(f"{url}/v1/predict", content=data, timeout=120)
            assert answer.status_code == 200
            return float(answer.json()["logit"])

        logits = list(pool.map(ask, pictures))
    assert logits == logits[:5] * 12


def test_who_goes_away_is_not_waited_for(
    detector: Detector, capfd: pytest.CaptureFixture[str]
) -> None:
    gated = Gated(detector)
    with running(gated) as url, concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(httpx2.post, f"{url}/v1/predict", content=picture(0), timeout=30)
        assert gated.came.acquire(timeout=10)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/v1/predict", content=picture(1), timeout=0.3)
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as half:
            head = f"POST /v1/predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 99\r\n"
            half.sendall(head.encode() + b"\r\nhalf")
        last = pool.submit(httpx2.post, f"{url}/v1/predict", content=picture(2), timeout=30)
        gated.gate.set()
        assert first.result().status_code == last.result().status_code == 200
    assert gated.seen == [picture(0), picture(2)]
    assert capfd.readouterr() == ("", "")


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(loaded: Bundle, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle file, next to its backbone."""
    path = tmp_path_factory.mktemp("detector") / "noise.safetensors"
    bundle.save(path, loaded)
    (path.parent / backbone_file.name).write_bytes(backbone_file.read_bytes())
    return path


def test_the_command_listens_answers_and_ends(small: Path, detector: Detector) -> None:
    script = "import sys; from cinemae_jax.main import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", script, "serve", "--detector", str(small), "--port", "0"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stderr
            said = iter(process.stdout.readline, "")
            ready = next((line for line in said if line.startswith("ready")), "")
            assert ready, process.stderr.read()
            url = ready.split()[1]
            answer = httpx2.post(f"{url}v1/predict", content=picture(), timeout=30).json()
            (expected,) = detector.predict(picture())
            assert answer["logit"] == pytest.approx(expected.logit, abs=1e-4)
            assert main.main(["serve", "--port", str(urlsplit(url).port)]) == 2
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
            assert (process.returncode, out, err) == (0, "stopped\n", "")
        finally:
            process.kill()


def test_ctrl_c_ends_it_as_well(
    small: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "make_detector", lambda *_, **__: detector)
    ctrl_c = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    monkeypatch.setattr(serve, "_ready", lambda *_, **__: ctrl_c.start())
    assert main.main(["serve", "--detector", str(small), "--port", "0"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "must lie between 0 and 65535"),
        (["--queue", "0"], "must be 1 or more"),
        (["--host", "256.1.1.1", "--port", "0"], "cannot listen on 256.1.1.1"),
        (["--port", "0", "--detector", "nowhere"], "no detector nowhere"),
        (["--colour", "red"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code: object
    try:
        code = main.main(["serve", *arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_busy_port_is_told_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.bundle, "load", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main.main(["serve", "--port", str(port)]) == 2
    assert f"port {port}: Address already in use" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "cinemae_jax.serve.server")
    monkeypatch.delattr("cinemae_jax.serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main.main(["serve"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'cinemae_jax[web]'" in said
    assert "uvicorn" in said


def test_what_others_can_reach_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for host, cautioned in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        with serve.bound(host, 0) as listener:
            assert serve.LOOPBACK | {host} <= serve.names_of(host)
            serve._ready(host, listener, opened=False)
        printed = capsys.readouterr().out
        assert ("caution" in printed) == cautioned
        assert re.search(r"ready     http://(127.0.0.1|localhost):\d+/ ", printed)


def test_the_page_is_opened_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = concurrent.futures.Future[str]()
    monkeypatch.setattr(serve.webbrowser, "open", opened.set_result)
    with serve.bound("127.0.0.1", 0) as listener:
        serve._ready("127.0.0.1", listener, opened=True)
        assert opened.result(10) == f"http://127.0.0.1:{listener.getsockname()[1]}/"


def test_the_examples_of_the_documentation_name_real_options() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    usage = text.split("```")[1]
    known = {flag for action in serve.parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"--[a-z-]+", usage)) == known - {"-h", "--help"}
    row = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert row.keys() == answers.Answer.model_fields.keys()
