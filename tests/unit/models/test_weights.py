from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.models import weights
from pipelines.models.backbones import BACKBONES, BackboneSpec
from pipelines.models.heads import HeadSpec
from pipelines.models.scaling import SCALINGS


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    named, home = tmp_path / "weights", tmp_path / "keras"
    (home / "models").mkdir(parents=True)
    named.mkdir()
    monkeypatch.setenv("NIGHTREAD_WEIGHTS", str(named))
    monkeypatch.setenv("KERAS_HOME", str(home))
    return named, home / "models"


def test_the_named_folder_goes_before_keras_cache(folders: tuple[Path, Path]) -> None:
    file = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"
    assert weights.find_published("mobilenet_v2", 0.35, 96) is None
    (folders[1] / file).write_bytes(b"x")
    assert weights.find_published("mobilenet_v2", 0.35, 96) == folders[1] / file
    (folders[0] / file).write_bytes(b"x")
    assert weights.find_published("mobilenet_v2", 0.35, 96) == folders[0] / file


def test_weights_of_224_pixels_fit_every_size_and_may_have_a_short_name(folders: tuple[Path, Path]) -> None:
    short = folders[0] / "mobilenet_v2_1.0_224_no_top.weights.h5"
    short.write_bytes(b"x")
    assert weights.find_published("mobilenet_v2", 1.0, 96) == short
    assert weights.find_published("mobilenet_v2", 1.0, 300) == short
    assert weights.find_published("mobilenet_v2", 0.5, 224) is None


def test_a_file_that_is_not_the_published_one_is_named_with_both_hashes(folders: tuple[Path, Path]) -> None:
    path = folders[0] / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    path.write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        weights.find_published("vgg16", 1.0, 224)
    assert hashlib.md5(b"x").hexdigest() in str(caught.value)
    assert "6d6bbae143d832006294945121d1f1fc" in str(caught.value)


def test_an_alpha_without_published_weights_lists_those_with() -> None:
    with pytest.raises(UsageError, match=r"alpha 0\.6") as caught:
        weights.published_weights("mobilenet_v2", 0.6, 224)
    assert "0.35" in caught.value.cure


def test_every_backbone_has_published_weights_and_a_scaling() -> None:
    for name in BACKBONES:
        assert weights.published_weights(name, 1.0, 224)[0].url.startswith("https://storage.googleapis.com/")
        assert name in SCALINGS


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "resnet"}, "mobilenet_v2, resnet50_v2, efficientnet_v2_b0, vgg16"),
        ({"input_size": 31}, "32 to 1024"),
        ({"input_size": 2000}, "not 2000"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"name": "vgg16", "alpha": 0.5}, "its width is fixed"),
        ({"scaling": "none"}, "backbone or 0..1"),
    ],
)
def test_impossible_backbones_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        BackboneSpec(**values)  # type: ignore[arg-type]
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"classes": 1}, "at least 2"),
        ({"classes": 3, "output": "sigmoid"}, "exactly 2"),
        ({"classes": 2, "output": "x"}, "softmax, sigmoid"),
        ({"classes": 2, "pooling": "mean"}, "avg, max, flatten"),
        ({"classes": 2, "activation": "x"}, "relu"),
        ({"classes": 2, "dropout": 1.0}, "dropout 1.0"),
        ({"classes": 2, "dense_units": (0,)}, "dense_units"),
    ],
)
def test_impossible_heads_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        HeadSpec(**values)  # type: ignore[arg-type]
    assert says in str(caught.value)
