"""Golden pictures: what proves that an upgraded library still gives the pixels that a model was trained on.

`preprocessing_id` must change when pixels change and must not when only a version or a processor does, and two
processors may round one step apart. So each picture stands here with the pixels it had when the contract was
written: found again within the tolerance, its token is that of the contract; otherwise that of what was found.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import numpy as np

from pipelines.images.samples import Bytes

SIDE = 8
TOLERANCE = 2
"""Steps of 255: the same that the decoders of the fallback chain are held to."""
MEAN_TOLERANCE = 0.25
"""Steps of 255 on average: another kernel differs little everywhere, rounding differs in a few places."""


@dataclass(frozen=True)
class Golden:
    """A tiny file and its pixels after decoding for `SIDE` and resizing to it.

    Attributes:
        file: The file's bytes.
        pixels: `SIDE × SIDE × 3` bytes.
    """

    file: bytes
    pixels: bytes


def token(picture: Golden, found: Bytes) -> bytes:
    """What goes into the hash for one golden picture.

    Args:
        picture: The golden picture.
        found: uint8 [SIDE, SIDE, 3], what this machine makes of it.

    Returns:
        32 bytes: the same wherever the pixels agree.
    """
    expected = np.frombuffer(picture.pixels, np.uint8).reshape(SIDE, SIDE, 3)
    difference = np.abs(found.astype(np.int16) - expected)
    same = int(difference.max()) <= TOLERANCE and float(difference.mean()) <= MEAN_TOLERANCE
    return hashlib.sha256(picture.pixels if same else found.tobytes()).digest()


# A colour JPEG of 60 × 44 with halved chroma, which the scaled-decode rule reads at a quarter.
_JPEG = Golden(
    file=base64.b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQ"
        "YEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAsADwD"
        "ASIAAhEBAxEB/8QAGQAAAwEBAQAAAAAAAAAAAAAAAwUGBAIH/8QALBAAAQQCAgIABQIHAAAAAAAAAQIDBBEAIQUSMUETUWFxkaHwFCIjMjRigf/E"
        "ABgBAQEBAQEAAAAAAAAAAAAAAAQDAgUB/8QAIhEAAgMAAQUBAAMAAAAAAAAAAQIAAwQRBRITITEUIkFR/9oADAMBAAIRAxEAPwB/yHINSI5QnaiK"
        "FVkoYbiZZcN0djCx232HOzwND38s2TORioja2v5neXr2HOCtY55hsWY7EKwcmQhcYoKuxOtevWJHkhpXYjx5IzqKtyRK0TVjwMZyuLWY3ZCbNXoY"
        "Xy2WXhbBxMIi9Pc0g/Z1wk5tlaSVDX/PtlizLbfbBRdfbPLHI78d3+RNbx9w/LKYAS8o18ifWdTd02t6uEPv/J5op8b/AMPcc83Y7eCK+fjJdTrS"
        "FELUb+isd8nPTKZ/p12OhiEsqToX+Lzh09LWscWHgxtHTabk7rG4Mtp8RL7YbaoUPVZJctw0plRWAarzeOeN5tLkqlHWt1lFOdjyYSklA/tsA5np"
        "Tuh5Ye5oaqcZ8an7PPeGWESCgkdr2Mu2Q27HAIG/1P7ORq4KmpvfqevnVjHsOT0bSFeqvFbbL7bAeJW3LlsItJgeXiNoB0d73+/rkz8JSnT1KrVv"
        "xlNyT6XgQCTo+rxbDSEu7om67Vd/YZWkaEcWj3Da6mqrOir2BBRmnUV2sZr+I2kkEj8YSY4kN0mh77fjFpWSdJRX+3nGvmOw+R/RgszV7E77DwZn"
        "gw3GngdijQOU5klmKOyvVCzV5iipCnUg+xed8mSI5ANazm9QH5HHZA5qhpbuf+oBqSl98VV35GaZTBZa7JNCtYo4hA/jR9TlRySe0PsSbrL59T22"
        "qjS1rHyhB8iON2kOCiUpP10McNcX1R2rzv74o4f/AC69BQywZ8gYrqOl89orT5E363RPzr8Mmp0MjsRZNVV4qXHSD4GVM7aftr9cSOgBxQoYzLYW"
        "WUyYqwk//9k="
    ),
    pixels=base64.b64decode(
        "k8/EP2vbH6y3X15VUnODiN2yk+1DN6AQTKCak4iaW31NSXRCUDutVYvRitZ8j1ZfPZ1uuV9leEdURK1nXE68NU6ybnq9kU97nMhOoUGBaTugg8aN"
        "mKiPQGtXT0u/T4xw0bk3wq61mENlyo9V0pyAXHdNI6WJcGuqX4MnZuOxf32fk4GDmIWjo1KsG7OyPmvKCXxVOsh8VY6hTKKwXHTQonzOSLrQR3fZ"
        "E5+2Z6pGQn45SsaaWXHgc9Ocgte/kHfc"
    ),
)

# An RGBA PNG of 12 × 10 with 12 of 16 bits used and declared: bit-depth rule, alpha rule.
_PNG = Golden(
    file=base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAwAAAAKEAYAAADQvGO5AAAABHNCSVQMDAwMl2JaHgAAAwpJREFUeNol011Il1ccB/Dz9nvOc56X/+kFiVFjmCh5"
        "k+vCuihrLdpQkqLonVgKFUJpzBakRcUGukFsw1jbxZZRImQGUuBLUFvUCqIyasjY0Wgt+K8uwtGwXazT9+Bzc+6+39/vw+9hDJ/15PgSvEusF82M"
        "FVqslz2M5b3WK8dY9tj6aDbeOeR0HWPpWuvj44wlHdabIcbMNeuTl4zFU9ZnFXiryOU7GNN7rGesAcFN1vPvWU3hDArus7b8dwRHbDCfieoa9iqr"
        "JRcd4IvS49brPt6cDKPgT95nJhH8Di+aSuvTdaI8biCXdYhG/YP1+VVxOnoQCq5j4oco+I+1FVJM/j57la9CwR7enLWTo594Mb2EDX4TjckLBGfC"
        "JWWYfJXcZLajoE2Oxl3k0gFVp+9gg6K6oaX1hfdoebQUBbwMBTWYfBsm/gwF3yK4n5y6LcrTZ9jAC5e+i8kXy65kIwr2qTpzAgXniMc3ySV/0JD+"
        "H8GzohZdjclrdUW0DwXH9Dj1hIIvpq3FFVA8Jif/4cVsDoIrEQzraKccDdb6lLoRrON7NBRPIZiiC3EVaJbp7mCdtcYno9MoOG86aQwFT5LDZMkx"
        "/gwFMxE8jy/KakGzQTQGa/oKE8M6+gXBsNav6V9TSc5U6Yq4ATS7483BOv3RdAbr7FEyHBkEp+lzWknOfpjPVYewgfgI19EOmiO8OViryzCGNb1Q"
        "dcFaz6chs51cvBXBXaD5Jj4ZrJNbiQjW6Zt0f7DOq7MJaiVX2FtYo/qst2ftiHwaCnpxdrCWE7wvWFOJ3BSsozXEzQmc5eeguAmaEUwMazOJYFin"
        "C9L+YJ19km+hHpzld1aqcWxwl11UJQhWYqusxyvj6btWK3gxWNNBOWqu4Sz7gzU2+Et3B2sz13QG62Q9JoZ1+iWCx3CWP9sPyGKDKb5AfYzJF8oZ"
        "8iiCd6nXYjAUNOGHgbXqFuVmEmc5hivBXetC1BKs49UggbU5DGNYJ5eyicjgLJ9bSSsRXIpgWBe2yHo5gIKv6VPxN4J/1adEKbm3gHQuibnKvb8A"
        "AAAASUVORK5CYII="
    ),
    pixels=base64.b64decode(
        "CACjIgHoPgLLNwN5fAWulgadhgRnrwhiDwLuKQndMwyOWBefgyKjgR57jylc1zltFgPjIgqfRR2cai6tdzSGdDdexFxy3mliFgK1KxOTVzCycUOh"
        "WzlWpWt2y4dnlWE8HAeEQCG6Wz6fSjhcmn2AtJdvnIdFyLM7LQi/RymvSDhtc2Z2oZp0mpZUpo05sZ0+NAq0OCF8XVN1iId+kZxdip4+41JEUjUz"
        "LwWOQixwdXCDj5xzboU5wm9J6jk5VTwc"
    ),
)

PICTURES = (_JPEG, _PNG)
