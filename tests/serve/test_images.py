"""POST /v1/images/*: the images of `generate`, in any batch, with what they cost; and what is refused."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import swiftmask
from swiftmask.core.protocol import SamplingOptions
from swiftmask.serve.catalogue import Catalogue

from .conftest import file_of, pixels_of

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


def asked(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(GENERATIONS, json={"prompt": "3", "steps": 3, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_images_are_those_of_generate_in_any_batch(
    client: TestClient, tiny_pipeline: swiftmask.Pipeline
) -> None:
    """Pixel for pixel on the CPU in float32: twelve requests at once, in batches of up to four."""
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: asked(client, seed=seed, guidance=3), range(12)))
    assert max(answer["cost"]["batch_size"] for answer in answers) > 1, "some shared a decode"
    for seed, answer in enumerate(answers):
        alone = tiny_pipeline.generate([3], seeds=[seed], steps=3, guidance=3).images[0]
        assert [entry["seed"] for entry in answer["data"]] == [seed]
        assert np.array_equal(pixels_of(answer["data"][0]), np.array(alone))


def test_a_request_of_more_images_than_a_batch(client: TestClient, tiny_pipeline: swiftmask.Pipeline) -> None:
    seed = 2**64 - 6
    answer = asked(client, n=6, seed=seed)
    images = tiny_pipeline.generate([3] * 6, seeds=range(seed, seed + 6), steps=3).images
    assert all(
        np.array_equal(pixels_of(entry), np.array(image))
        for entry, image in zip(answer["data"], images, strict=True)
    )
    assert answer["cost"]["images"] == 6 and answer["cost"]["batch_size"] == 4


def test_labels_and_random_seeds(client: TestClient) -> None:
    answer = asked(client, prompt="", labels=[3, "5"], n=2)
    seeds = [entry["seed"] for entry in answer["data"]]
    assert len(set(seeds)) == 4, "nobody chose them, and each is told"
    again = asked(client, prompt="5", seed=seeds[2])
    assert np.array_equal(pixels_of(answer["data"][2]), pixels_of(again["data"][0]))


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"model": "tiny+shortcut", "full_steps": 2, "steps": 4, "schedule_power": 2.0}, {"full_steps": 2}),
        ({"model": "tiny+shortcut", "steps": 4, "guidance": 1.0}, {}),
    ],
)
def test_the_cost_is_the_counted_one(
    fields: dict[str, Any], settings: dict[str, int], client: TestClient, tiny_catalogue: Catalogue
) -> None:
    """Operations are predicted from those of other schedules, to the last one."""
    cost = asked(client, **fields)["cost"]
    sampling = {key: fields[key] for key in ("schedule_power", "guidance") if key in fields}
    options = SamplingOptions(**sampling)
    fast = swiftmask.accelerate(
        tiny_catalogue.base, shortcut=tiny_catalogue.variants["tiny+shortcut"].settings.shortcut, **settings
    )
    for pipeline, told in ((fast, cost), (tiny_catalogue.base, cost["full_model"])):
        result = pipeline.generate([3], steps=fields["steps"], sampling=options)
        assert told["calls_per_image"] == result.cost.calls
        assert told["gflop_per_image"] == round(result.cost.flops / 1e9, 4)


def test_webp_and_what_an_answer_says(client: TestClient) -> None:
    png, webp = (asked(client, seed=1, output_format=kind)["data"][0] for kind in ("png", "webp"))
    assert np.array_equal(pixels_of(png), pixels_of(webp)), "lossless"
    answer = asked(client, seed=1, output_format="webp", output_compression=10)
    assert (answer["size"], answer["model"], answer["output_format"]) == ("8x8", "tiny", "webp")


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data:")]


def test_a_stream_of_partial_images(client: TestClient) -> None:
    answer = client.post(
        GENERATIONS,
        json={"prompt": "3", "steps": 6, "n": 2, "seed": 1, "stream": True, "partial_images": 3},
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    kinds = [event["type"].removeprefix("image_generation.") for event in told]
    assert kinds == ["partial_image"] * 6 + ["completed"] * 2
    first = [event for event in told if event["image_index"] == 0]
    assert [event["partial_image_index"] for event in first[:-1]] == [0, 1, 2]
    grey = [(pixels_of(event) == 128).all(axis=-1).sum() for event in first]
    assert grey[0] > grey[1] > grey[2] > grey[3], "the canvas fills"
    whole = asked(client, steps=6, n=2, seed=1)["data"]
    assert np.array_equal(pixels_of(told[-1]), pixels_of(whole[1]))
    assert told[-1]["cost"]["images"] == 2


def picture(side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


@pytest.mark.parametrize("mask", ["white", "transparent", "of the image", "outpainting"])
def test_edits_keep_every_pixel_outside_the_mask(mask: str, client: TestClient) -> None:
    """White is generated anew in our masks, transparent in OpenAI's; around a smaller image, everything."""
    image, drawn_HW = picture(), np.zeros((8, 8), bool)
    drawn_HW[1:4, 3:] = True
    clear = np.dstack([np.array(image), np.where(drawn_HW, 0, 255).astype(np.uint8)])
    files = {"image": file_of(image)}
    if mask == "white":
        files["mask"] = file_of(Image.fromarray(drawn_HW))
    elif mask == "transparent":
        files["mask"] = file_of(Image.fromarray(clear))
    elif mask == "of the image":
        files["image"] = file_of(Image.fromarray(clear))
    else:
        files["image"] = file_of(image.crop((2, 2, 6, 6)))
        drawn_HW[:] = True
        drawn_HW[2:6, 2:6] = False
    answer = client.post(EDITS, files=files, data={"prompt": "3", "steps": "3", "n": "2", "seed": "4"})
    assert answer.status_code == 200, answer.text
    before = np.array(image)
    for entry in answer.json()["data"]:
        after = pixels_of(entry)
        assert np.array_equal(after[~drawn_HW], before[~drawn_HW])
        assert (after[drawn_HW] != before[drawn_HW]).any()


REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": " "}, "prompt is empty", "prompt"),
    ({"prompt": 3}, "prompt must be a text, got 3", "prompt"),
    ({"prompt": "a" * 41}, "prompt has 41 letters, at most 40", "prompt"),
    ({"prompt": "99"}, "unknown class '99'", "prompt"),
    ({"prompt": "3", "labels": [1]}, "prompt or labels, not both", "labels"),
    ({"prompt": "", "labels": [True]}, "labels must be classes", "labels"),
    ({"prompt": "", "labels": [1] * 9}, "at most 8 images a request, got 9", "labels"),
    ({"prompt": "", "labels": [1] * 3, "n": 4}, "at most 8 images a request, got 12", "n"),
    ({"n": 0}, "n must be a whole number between 1 and 8, got 0", "n"),
    ({"n": 1.5}, "n must be a whole number", "n"),
    ({"n": True}, "n must be a whole number", "n"),
    ({"seed": 2**64}, "seed must be a whole number between 0 and 2**64 - 1", "seed"),
    ({"seed": -1}, "seed must be", "seed"),
    ({"seed": 2**64 - 1, "n": 2}, "seed + n - 1 must be at most 2**64 - 1", "seed"),
    ({"steps": 17}, "steps must be a whole number between 1 and 16, got 17", "steps"),
    ({"guidance": 0.5}, "guidance must be a number between 1 and 100", "guidance"),
    ({"temperature": "hot"}, "temperature must be a number", "temperature"),
    ({"schedule_power": 0}, "schedule_power must be a number between 0.1 and 10", "schedule_power"),
    ({"full_steps": 2}, "full_steps goes with a shortcut or caching", "full_steps"),
    (
        {"full_steps": 4, "model": "tiny+shortcut"},
        "full_steps must be at most steps (3), got 4",
        "full_steps",
    ),
    ({"size": "1024x1024"}, "tiny generates images of 8x8 only", "size"),
    ({"size": "big"}, "size must be auto or WIDTHxHEIGHT", "size"),
    ({"size": "8x²"}, "size must be auto or WIDTHxHEIGHT", "size"),
    ({"response_format": "url"}, "response_format must be b64_json, got 'url'", "response_format"),
    ({"output_format": "jpeg"}, "output_format must be png or webp", "output_format"),
    ({"output_compression": 50}, "output_compression goes with output_format webp", "output_compression"),
    ({"partial_images": 2}, "partial_images needs stream=true", "partial_images"),
    ({"stream": 1}, "stream must be true or false", "stream"),
    ({"quality": "hd"}, "quality must be auto or standard", "quality"),
    ({"negative_prompt": "x"}, "takes no negative_prompt", "negative_prompt"),
    ({"stpes": 3}, "unknown field 'stpes': did you mean steps", "stpes"),
]


@pytest.mark.parametrize(("fields", "message", "param"), REFUSED)
def test_what_is_refused_and_why(
    fields: dict[str, Any], message: str, param: str | None, client: TestClient
) -> None:
    answer = client.post(GENERATIONS, json={"prompt": "3", "steps": 3, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert message in error["message"] and error["param"] == param
    assert "\n" not in error["message"]


@pytest.mark.parametrize(("name", "code"), [("model", "tiny+magic"), ("preset", "fast")])
def test_models_that_are_not_loaded(name: str, code: str, client: TestClient) -> None:
    answer = client.post(GENERATIONS, json={"prompt": "3", name: code})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == name
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is damaged (it is empty)"),
        (b"[1]", 400, "expected a JSON object"),
        (b"{" * 2000, 400, "the body is damaged"),
        (b'{"prompt": "\\ud800"}', 400, "half of a surrogate pair"),
        (b'{"prompt": "3", "prompt": "4"}', 400, "given twice"),
        (b'{"prompt": "3", "guidance": NaN}', 400, "the body is damaged"),
        (b"x" * 200_001, 413, "the body has 200001 bytes, at most 200000"),
    ],
)
def test_broken_bodies(body: bytes, status: int, message: str, client: TestClient) -> None:
    answer = client.post(GENERATIONS, content=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("files", "data", "status", "message"),
    [
        ({"image": b"no image"}, {}, 400, "no PNG, JPEG or WebP image"),
        ({"image": file_of(picture(), "GIF")}, {}, 400, "no PNG, JPEG or WebP image"),
        ({"image": file_of(picture())[:60]}, {}, 400, "cannot read image 'image'"),
        ({"image": file_of(Image.new("1", (200, 200)))}, {}, 413, "image has 40000 pixels"),
        ({"image": file_of(picture())}, {}, 400, "nothing is left to generate"),
        ({"image": file_of(picture(16))}, {}, 400, "larger than the model's"),
        ({"image": file_of(picture(4)), "mask": file_of(picture(8))}, {}, 400, "make them of one size"),
        ({"mask": file_of(picture())}, {}, 400, "expected one image"),
        ({"image": file_of(picture(4)), "other": b""}, {}, 400, "unknown file 'other'"),
        ({"image": file_of(picture(4))}, {"steps": "many"}, 400, "steps must be a whole number"),
        ({"image": file_of(picture(4))}, {"steps": "--5"}, 400, "steps must be a whole number"),
        ({"image": file_of(picture(4))}, {"guidance": "nan"}, 400, "guidance must be a number"),
        ({"image": file_of(picture(4))}, {"prompt": ""}, 400, "prompt is empty"),
    ],
)
def test_broken_forms(
    files: dict[str, bytes], data: dict[str, str], status: int, message: str, client: TestClient
) -> None:
    answer = client.post(EDITS, files=files, data={"prompt": "3", **data})
    assert message in answer.json()["error"]["message"], answer.text
    assert answer.status_code == status


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary=x"]
)
def test_forms_that_are_none(kind: str, client: TestClient) -> None:
    answer = client.post(EDITS, content=b"--y\r\n\r\nwhat", headers={"content-type": kind})
    assert answer.status_code in (400, 415) and answer.json()["error"]["message"]


def test_models_health_and_metrics(client: TestClient) -> None:
    asked(client)
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny", "tiny+shortcut", "tiny+reuse"]
    one = client.get("/v1/models/tiny+shortcut").json()
    assert one["accelerators"] == {"shortcut": "tiny-shortcut"}, "a name, no path"
    assert (one["precision"], one["device"], one["size"]) == ("float32", "cpu", "8x8")
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json()["status"] == "ok"
    page = client.get("/metrics").text
    for name in ("batch_size_count", "queue_images", "request_seconds_bucket", "errors_total"):
        assert f"swiftmask_{name}" in page
    assert 'swiftmask_images_total{model="tiny"}' in page


def test_unknown_paths_and_methods(client: TestClient) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", GENERATIONS, 405)):
        answer = client.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["message"]


def test_one_line_of_log_a_request_without_the_prompt(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "swiftmask.serve.requests"):
        answer = client.post(GENERATIONS, json={"prompt": "3", "steps": 2, "seed": 77})
        client.post(GENERATIONS, json={"prompt": "a secret"})
    good, bad = (json.loads(record.getMessage()) for record in caplog.records)
    assert good["id"] == answer.headers["x-request-id"] == answer.json()["id"]
    assert (good["status"], good["images"], good["model"], good["steps"]) == (200, 1, "tiny", 2)
    assert (bad["status"], bad["error"], bad["param"]) == (400, "unreadable_prompt", "prompt")
    assert "secret" not in json.dumps(bad) and "prompt" not in good
