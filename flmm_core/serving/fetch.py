"""An image from a URL, for a server that allows them: never from its own network.

A name is resolved once; if any of its addresses is not public, the URL is refused, and the
connection goes to an address that was checked. So is every redirect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import httpx

from flmm_core.errors import shortened
from flmm_core.serving.budget import Account
from flmm_core.serving.limits import Limits
from flmm_core.serving.refusals import RefusalError

MOST_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}


async def fetch(url: str, limits: Limits, account: Account) -> bytes:
    """What a URL holds.

    Raises:
        RefusalError: 400 if its address is not public, it redirects too often, is too large or too
            slow, or does not answer with 200.
    """
    try:
        async with asyncio.timeout(limits.read_seconds):
            for _ in range(MOST_REDIRECTS + 1):
                found = await _once(httpx.URL(url), limits, account)
                if isinstance(found, bytes):
                    return found
                url = str(found)
    except TimeoutError:
        raise _refusal(url, f"It did not arrive within {limits.read_seconds:g} seconds.") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        raise _refusal(url, f"Fetching it ended with {type(error).__name__}.") from None
    raise _refusal(url, f"It redirects more than {MOST_REDIRECTS} times.")


async def _once(url: httpx.URL, limits: Limits, account: Account) -> bytes | httpx.URL:
    """What a URL holds, or where it redirects to."""
    address = await public_address(url)
    pinned = url.copy_with(host=address, port=PORTS[url.scheme], username=None, password=None)
    # No proxy and no credentials of this machine: trust_env. The host's name is for TLS.
    headers = {
        "Host": url.netloc.decode("ascii").rpartition("@")[2],
        "Accept": "image/*",
        "Accept-Encoding": "identity",
    }
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
        client.stream(
            "GET", pinned, headers=headers, extensions={"sni_hostname": url.host}
        ) as response,
    ):
        if response.has_redirect_location:
            return url.join(response.headers["location"])
        if response.status_code != 200:
            raise _refusal(str(url), f"The answer is {response.status_code}.")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _refusal(str(url), "The answer is compressed.")
        data = bytearray()
        async for part in response.aiter_raw(1 << 16):
            data += part
            if len(data) > limits.body_bytes:
                raise _refusal(str(url), f"It has more than {limits.body_bytes / (1 << 20):g} MiB.")
            account.take(len(part))
        return bytes(data)


async def public_address(url: httpx.URL) -> str:
    """An address of a URL's host that anyone on the internet could reach.

    Raises:
        RefusalError: 400 if there is none, or any of its addresses is not public.
    """
    if url.scheme not in PORTS or not url.host or url.port not in (None, PORTS[url.scheme]):
        raise _refusal(str(url), "Only http and https at their usual ports are fetched.")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host, PORTS[url.scheme], type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):
        raise _refusal(str(url), "Its host has no address.") from None
    addresses = [ipaddress.ip_address(each[4][0]) for each in found]
    if not addresses or not all(map(is_public, addresses)):
        raise _refusal(str(url), "Its host is not on the public internet.")
    return str(addresses[0])


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is of the public internet, also if it hides an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        hidden = address.ipv4_mapped or address.sixtofour
        if hidden is None and address.teredo is not None:
            return False
        if hidden is None and address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return is_public(hidden)
    return address.is_global and not address.is_multicast


def _refusal(url: str, why: str) -> RefusalError:
    return RefusalError(400, f"The URL {shortened(url)!r} cannot be used. {why}", param="image")
