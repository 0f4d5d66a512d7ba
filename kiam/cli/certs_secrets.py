"""``kiam certs renew --next-secret``: the certificates that the chart made, in the cluster's Secrets."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kiam.errors import UserError

if TYPE_CHECKING:
    from kiam.server.kubernetes.api import KubeApi
    from kiam.server.kubernetes.secrets import Secret
    from kiam.tls.succession import Half, Outcome, Successor

HALVES = ("agent", "server")
TRUSTED_SINCE = "kiam.io/trusted-since"
"""The chart's annotation, in Unix time."""


@dataclass(frozen=True, slots=True)
class Location:
    """A Secret, and what its files are called."""

    name: str
    ca: str = "ca"
    cert: str = "cert"
    key: str = "key"


def renew(arguments: argparse.Namespace) -> None:
    """Do what is due, if anything is. Raises UserError."""
    asyncio.run(_renew(arguments))


async def _renew(arguments: argparse.Namespace) -> None:
    from kiam.server.kubernetes.api import KubeApi, KubeError
    from kiam.server.kubernetes.secrets import read_secret
    from kiam.tls.succession import Terms, ends, succeed
    from kiam.tls.summary import format_time

    locations = {half: getattr(arguments, f"{half}_secret") for half in HALVES}
    api = await KubeApi.connect(arguments.kubeconfig)
    try:
        names = {half: location.name for half, location in locations.items()} | {"next": arguments.next_secret}
        secrets = {what: await read_secret(api, arguments.namespace, name) for what, name in names.items()}
        halves = {half: _half(secrets[half], locations[half]) for half in HALVES}
        terms = Terms(arguments.renew_before, arguments.days)
        try:
            outcome = succeed(halves, _successor(secrets["next"]), datetime.now(UTC), terms)
            good_until = format_time(ends(halves if outcome is None else outcome.halves))
        except ValueError as error:
            raise UserError(f"the certificates in {', '.join(names.values())} can't be renewed: {error}") from error
        if outcome is not None:
            await _store(api, secrets, locations, outcome)
    except KubeError as error:
        raise UserError(str(error), "helm upgrade makes Secrets that are missing") from error
    finally:
        await api.close()
    print(
        f"{_SAID['keep' if outcome is None else outcome.action]}; the certificates in use are good until {good_until}"
    )


_SAID: Mapping[str, str] = {
    "keep": "nothing to do",
    "introduce": "agents and servers were told to trust the pair that takes over",
    "renew": "both certificates renewed by the pair that was trusted already",
    "make": "both certificates made anew, because one had ended",
}


def _half(secret: Secret, location: Location) -> Half:
    from kiam.tls.succession import Half, Pair

    missing = [file for file in (location.ca, location.cert, location.key) if not secret.data.get(file)]
    if missing:
        raise UserError(
            f"the Secret {location.name} has no {', '.join(missing)}", "name its files as in kiam-agent:ca,cert,key"
        )
    return Half(Pair(secret.data[location.cert], secret.data[location.key]), secret.data[location.ca])


def _successor(secret: Secret) -> Successor | None:
    """What the chart, or this command, stored; None for what isn't whole."""
    from kiam.tls.succession import Pair, Successor

    files = {"ca", *(f"{half}-{what}" for half in HALVES for what in ("cert", "key"))}
    since = secret.annotations.get(TRUSTED_SINCE, "")
    if not files <= secret.data.keys() or not since.isdecimal():
        return None
    pairs = {half: Pair(secret.data[f"{half}-cert"], secret.data[f"{half}-key"]) for half in HALVES}
    return Successor(secret.data["ca"], pairs, datetime.fromtimestamp(int(since), UTC))


async def _store(
    api: KubeApi, secrets: Mapping[str, Secret], locations: Mapping[str, Location], outcome: Outcome
) -> None:
    from kiam.server.kubernetes.secrets import replace_contents

    following = {"ca": outcome.successor.ca}
    for half, pair in outcome.successor.pairs.items():
        following |= {f"{half}-cert": pair.cert, f"{half}-key": pair.key}
    since = str(int(outcome.successor.trusted_since.timestamp()))
    # First, because the version it was read in has the API refuse a second renewal at the same time here, before
    # anything that is in use has changed.
    await replace_contents(api, secrets["next"], following, {TRUSTED_SINCE: since})
    for half, renewed in outcome.halves.items():
        location = locations[half]
        files = {location.ca: renewed.ca, location.cert: renewed.pair.cert, location.key: renewed.pair.key}
        await replace_contents(api, secrets[half], files, {})
