"""Bodies of requests: every client's way to send an image gives its bytes back, and anything else is a problem."""

from __future__ import annotations

import base64
import json
import textwrap
import time
import tracemalloc
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.serving.bodies import MAX_IMAGES, Form, form_of, from_base64, many_images, one_image
from pipelines.serving.problems import KINDS, Problem, Refused

JSON = Form("json")
CONTENT = st.binary(min_size=1, max_size=300)


def form(*parts: tuple[str, bytes], boundary: bytes = b"night", end: bytes = b"--\r\n") -> tuple[Form, bytes]:
    """A form written by hand; a part is its Content-Disposition after `form-data; ` and its content."""
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary, about.encode(), content)
        for about, content in parts
    )
    return Form("multipart", boundary), body + b"--" + boundary + end


def refusal(kind: Form, body: bytes) -> Problem:
    with pytest.raises(Refused) as caught:
        one_image(kind, body)
    return caught.value.problem


@pytest.mark.parametrize(
    "content_type, kind",
    [
        (None, "raw"),
        ("", "raw"),
        ("image/jpeg", "raw"),
        ("IMAGE/PNG; x=y", "raw"),
        ("image/anything", "raw"),
        ("application/octet-stream", "raw"),
        ("application/json", "json"),
        ("application/json; charset=utf-8", "json"),
        ("application/vnd.hospital+json", "json"),
        ("multipart/form-data; boundary=x", "multipart"),
        ('Multipart/Form-Data; boundary="a b"', "multipart"),
    ],
)
def test_the_content_type_tells_the_kind(content_type: str | None, kind: str) -> None:
    assert form_of(content_type).kind == kind


@pytest.mark.parametrize(
    "content_type, code",
    [
        ("text/plain", "unsupported_media_type"),
        ("application/x-www-form-urlencoded", "unsupported_media_type"),
        ("multipart/mixed; boundary=x", "unsupported_media_type"),
        ("multipart/form-data", "bad_request"),
        ("multipart/form-data; boundary=" + "x" * 71, "bad_request"),
        ("image/" + "x" * 2000, "bad_request"),
    ],
)
def test_other_kinds_are_refused_before_anything_is_read(content_type: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        form_of(content_type)
    assert caught.value.problem.error_code == code


@settings(max_examples=40)
@given(CONTENT)
def test_an_image_comes_back_from_each_of_its_ways(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    wrapped = base64.encodebytes(content).decode().replace("\n", "\r\n")
    ways = [text, wrapped, f" \n{text}\n", "\n".join(textwrap.wrap(text, 7)), f"data:image/jpeg;base64,{text}"]
    ways += [f"DATA:;charset=x;BASE64,{wrapped}"]
    for way in ways:
        assert one_image(JSON, json.dumps({"image": way, "patient": "ignored"}).encode()) == content
    assert one_image(Form("raw"), content) == content
    assert one_image(*form(('name="anything"; filename="a.jpg"', content))) == content


@settings(max_examples=30)
@given(CONTENT, st.sampled_from(["files", "email"]))
def test_forms_of_other_peoples_libraries_are_read(content: bytes, library: str) -> None:
    if library == "files":
        request = httpx.Request("POST", "http://h/", data={"note": "x"}, files={"photo": ("näme.jpg", content)})
        body, content_type = request.read(), request.headers["content-type"]
    else:
        message = MIMEMultipart("form-data")
        part = MIMEApplication(content, "octet-stream", lambda part: part.set_payload(part.get_payload(decode=True)))
        part.add_header("Content-Disposition", "form-data", name="photo", filename="a b.jpg")
        message.attach(part)
        del message["MIME-Version"]
        content_type = message["Content-Type"] + f'; boundary="{(boundary := "=_night")}"'
        about = b'Content-Disposition: form-data; name="photo"; filename="a b.jpg"'
        body = b"--%s\r\n%s\r\n\r\n%s\r\n--%s--" % (boundary.encode(), about, content, boundary.encode())
    assert one_image(form_of(content_type), body) == content


@settings(max_examples=30)
@given(
    st.lists(st.one_of(CONTENT, st.just(b"\r\n--nigh"), st.just(b"\r\n--\r\n")), min_size=1, max_size=9),
    st.booleans(),
)
def test_a_batch_comes_back_in_its_order(contents: list[bytes], as_json: bool) -> None:
    if as_json:
        texts = [base64.b64encode(content).decode() for content in contents]
        assert many_images(JSON, json.dumps({"images": texts}).encode()) == contents
    else:
        parts = [(f'name="f"; filename="{number}"', content) for number, content in enumerate(contents)]
        assert many_images(*form(*parts)) == contents


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "A", "AAA", "AAAA=", "AAAA====", "=AAA", "AA==AAAA", "AA A", "AAA\tA", "AAA-", "AA_A", "AAAA\x00"),
        *("ÄAAA", "\ud800AAA", "%2BAA", "data:image/png,AAAA", "data:image/png;base64", "data:;base64,"),
        "data:" + "x" * 300 + ";base64,AAAA",
    ],
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        from_base64(text)
    assert caught.value.problem.status == 400


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"AAAA"', b"{}", b'{"image": null}', b'{"image": 1}', b'{"image": ["AAAA"]}'),
        *(b'{"Image": "AAAA"}', b"\xff\xfe", b"[" * 3000, b'{"image": ' + b"9" * 5000 + b"}", b'{"images": ["AAAA"]}'),
    ],
)
def test_json_without_an_image_is_refused(body: bytes) -> None:
    assert refusal(JSON, body).error_code == "bad_request"


def test_a_form_has_one_file() -> None:
    image = ('name="a"; filename="a"', b"one")
    assert one_image(*form(('name="token"', b"x"), image, ('name="z"', b""))) == b"one"
    # Some clients give their file no name; browsers send a nameless empty file where none was chosen.
    assert one_image(*form(('name="a"', b"one"))) == b"one"
    assert one_image(*form(image, ('name="b"; filename=""', b""))) == b"one"
    assert "several" in refusal(*form(image, image)).detail
    for parts in [(), (('name="a"; filename="a"', b""),), (('name="a"', b"x"), ('name="b"', b"y"))]:
        assert refusal(*form(*parts)).error_code == "bad_request"


def test_forms_that_break_off_or_overflow_are_refused() -> None:
    kind, body = form(('name="a"; filename="a"', b"content"))
    # What comes after the last boundary does not count.
    for length in range(len(body) - 2):
        assert refusal(kind, body[:length]).error_code == "bad_request"
    many = [('name="a"', b"x")] * 129
    assert "128 parts" in refusal(*form(*many)).detail
    long = f'name="{"x" * 9000}"; filename="a"', b"x"
    assert refusal(*form(long)).error_code == "bad_request"
    headers = b"--night\r\n" + b"a: b\r\n" * 17 + b"\r\nx\r\n--night--"
    assert refusal(Form("multipart", b"night"), headers).error_code == "bad_request"


def test_one_bad_image_of_a_batch_costs_no_other() -> None:
    good = base64.b64encode(b"good").decode()
    outcomes = many_images(JSON, json.dumps({"images": [good, "?", None, good, {}]}).encode())
    assert [outcome if isinstance(outcome, bytes) else outcome.status for outcome in outcomes] == [
        b"good",
        400,
        400,
        b"good",
        400,
    ]
    empty = ('name="a"; filename="a"', b"")
    [first, second] = many_images(*form(empty, ('name="a"; filename="b"', b"x")))
    assert isinstance(first, Problem) and second == b"x"


@pytest.mark.parametrize("count", [0, MAX_IMAGES + 1])
def test_a_batch_has_1_to_64_images(count: int) -> None:
    bodies = [
        (JSON, json.dumps({"images": ["AAAA"] * count}).encode()),
        form(*[('name="a"; filename="a"', b"x")] * count),
    ]
    for kind, body in bodies:
        with pytest.raises(Refused) as caught:
            many_images(kind, body)
        assert caught.value.problem.status == 400


HOSTILE = st.one_of(
    st.binary(max_size=400),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["image", "images", "x"]), inner),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode()),
    st.lists(
        st.sampled_from([b"--night", b"\r\n", b"--", b"\r", b"\n", b"\x00", b"a: b", b"Content-Disposition: form-data"])
        | st.sampled_from([b'; filename="a"', b"; filename=", b": ", b" ", b"x"]),
        max_size=30,
    ).map(b"".join),
)


@settings(max_examples=120)
@given(HOSTILE, st.sampled_from([JSON, Form("raw"), Form("multipart", b"night")]))
@example(b"--night\r\n" * 200, Form("multipart", b"night"))
@example(b'{"image": "\\ud800"}', JSON)
def test_whatever_the_bytes_are_there_is_an_image_or_a_problem(body: bytes, kind: Form) -> None:
    for read in (one_image, many_images):
        try:
            found = read(kind, body)
        except Refused as caught:
            assert caught.problem.error_code in KINDS
            continue
        outcomes = found if isinstance(found, list) else [found]
        assert 1 <= len(outcomes) <= MAX_IMAGES
        assert all(isinstance(outcome, Problem) or len(outcome) > 0 for outcome in outcomes)


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda value: value.decode("latin-1")))
def test_whatever_the_content_type_is_there_is_a_kind_or_a_problem(content_type: str) -> None:
    try:
        assert form_of(content_type).kind in ("raw", "json", "multipart")
    except Refused as caught:
        assert caught.problem.status in (400, 415)


@pytest.mark.parametrize(
    "kind, body",
    [
        (JSON, b"[" + b"{}," * 1_000_000 + b"{}]"),
        (JSON, b'{"image": ' + b"[" * 1_000_000),
        (JSON, b'{"image": "' + b"\\u0041" * 300_001 + b'"}'),
        (JSON, b'{"image": ' + b"1" * 2_000_000 + b"}"),
        (Form("multipart", b"night"), b"--night\r\n\r\n" + b"\r\n--nigh" * 300_000),
        (Form("multipart", b"night"), b"--night\r\n\r\n" + b"\r" * 2_000_000),
        (Form("multipart", b"night"), b"\r\n" * 1_000_000),
        (Form("multipart", b"night"), b"--night\r\n" + b"a: b\r\n" * 500_000),
    ],
    ids=["objects", "depth", "escapes", "digits", "almost boundaries", "returns", "preamble", "headers"],
)
def test_a_body_made_to_be_slow_or_large_costs_no_more_than_its_bytes(kind: Form, body: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        refusal(kind, body)
        seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(body)
    assert seconds < 1
