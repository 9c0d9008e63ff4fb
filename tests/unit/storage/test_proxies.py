from __future__ import annotations

import pytest

from pipelines.errors import UsageError
from pipelines.storage.clients import S3Settings
from pipelines.storage.proxies import proxy_to

PROXY = {"HTTPS_PROXY": "http://proxy:3128"}


@pytest.mark.parametrize(
    ("address", "exceptions", "spared"),
    [
        ("https://store.clinic.org", "store.clinic.org", True),
        ("https://store.clinic.org", "clinic.org", True),
        ("https://store.clinic.org", ".clinic.org", True),
        ("https://store.clinic.org", "localhost, *.clinic.org", True),
        ("https://store.clinic.org", "*", True),
        ("https://STORE.clinic.org", "Store.Clinic.org", True),
        ("https://notclinic.org", "clinic.org", False),
        ("https://store.clinic.org", "store", False),
        ("https://store.clinic.org", " , ,", False),
        ("https://10.1.2.3:9000", "10.0.0.0/8", True),
        ("https://11.1.2.3:9000", "10.0.0.0/8", False),
        ("https://10.1.2.3:9000", "10.1.2.3", True),
        ("https://10.1.2.3:9000", "10.1.2.3:9000", True),
        ("https://10.1.2.3:9000", "10.1.2.3:9001", False),
        ("https://store.clinic.org", "store.clinic.org:443", True),
        ("https://[fd00::7]:9000", "fd00::/8", True),
        ("https://[fd00::7]:9000", "[fd00::7]:9000", True),
        ("https://store.clinic.org", "10.0.0.0/8", False),
    ],
)
def test_who_is_reached_without_the_proxy(address: str, exceptions: str, spared: bool) -> None:
    proxy = proxy_to(address, PROXY | {"NO_PROXY": exceptions})
    assert proxy is not None
    assert (proxy.spared is not None) is spared
    settings = S3Settings(address, "r", proxy=proxy)
    assert settings.s3fs_options()["config_kwargs"]["proxies"] == ({} if spared else {"https": "http://proxy:3128"})
    assert settings.delta_options("b").get("proxy_excludes") == proxy.spared


@pytest.mark.parametrize(
    ("address", "variables", "url"),
    [
        ("http://store", PROXY, None),
        ("https://store", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("https://store", {"https_proxy": "http://small", "HTTPS_PROXY": "http://large"}, "http://small"),
        ("https://store", {"ALL_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ("http://store", {"ALL_PROXY": "http://all", "HTTP_PROXY": "http://plain"}, "http://plain"),
        ("http://store", {}, None),
    ],
)
def test_which_variable_is_read(address: str, variables: dict[str, str], url: str | None) -> None:
    proxy = proxy_to(address, variables)
    assert (proxy.url if proxy else None) == url


@pytest.mark.parametrize("url", ["http://", "socks5://user:hunter2@proxy", "http://user:hunter2@proxy:x"])
def test_a_proxy_that_cannot_be_one_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError, match="HTTPS_PROXY") as caught:
        proxy_to("https://store", {"HTTPS_PROXY": url})
    assert "hunter2" not in str(caught.value)
