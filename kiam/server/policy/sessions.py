"""What a pod's session is called and tagged with: who used a role, for CloudTrail and for policies."""

from __future__ import annotations

import string

from kiam.identity import hashed_name, session_name, sts_word
from kiam.server.kubernetes.objects import Pod
from kiam.server.settings import PLACEHOLDER, SessionSettings, TagScope

_LABEL = frozenset(string.ascii_lowercase + string.digits + "-")
_SUBDOMAIN = _LABEL | {"."}
_CHARACTERS = {"namespace": _LABEL, "serviceaccount": _SUBDOMAIN, "pod": _SUBDOMAIN}
"""Of which the names consist (Kubernetes API, "Object Names and IDs": DNS labels and DNS subdomains)."""


def ambiguous_parts(template: str, cluster: str) -> tuple[str, str] | None:
    """Two placeholders of which it can't be told where the one ends and the other begins; None: there are none such.

    The attack stopped: with ``{namespace}-{pod}``, whoever may make pods in the namespace ``a`` has CloudTrail show the
    name of pod ``c`` in ``a-b``, by calling one ``b-c``.
    """
    text = PLACEHOLDER.sub(lambda match: cluster if match[1] == "cluster" else match[0], template)
    _, *pieces = PLACEHOLDER.split(text)
    names, between = pieces[::2], [sts_word(piece) for piece in pieces[1:-1:2]]
    first, last = 0, len(names) - 1
    # From either end, a name ends where the first character comes that it can't have.
    while first < last:
        if set(between[first]) - _CHARACTERS[names[first]]:
            first += 1
        elif set(between[last - 1]) - _CHARACTERS[names[last]]:
            last -= 1
        else:
            return names[first], names[first + 1]
    return None


class Sessions:
    """Names and tags by the settings. Whatever is not a pod's annotation is the API's word, which no pod can forge."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._is_template = PLACEHOLDER.search(settings.session) is not None

    def name(self, pod: Pod) -> str:
        """The session name: by the pod's annotation, as conventional kiam has it, or by the template."""
        if pod.session_name or not self._is_template:
            return session_name(pod.session_name or self._settings.session)
        return hashed_name(f"kiam-{self._fill(self._settings.session, pod)}")

    def source_identity(self, pod: Pod) -> str:
        """What CloudTrail keeps through role chaining; empty: nothing. STS wants two characters at least."""
        template = self._settings.source_identity
        return hashed_name(self._fill(template, pod)).ljust(2, "-") if template else ""

    def tags(self, pod: Pod) -> tuple[tuple[str, str], ...]:
        """Session tags for attribute-based access control."""
        scope = self._settings.tags
        if scope is TagScope.NONE:
            return ()
        tags = [("kubernetes-cluster", self._settings.cluster), ("kubernetes-namespace", pod.namespace)]
        if scope in (TagScope.SERVICE_ACCOUNT, TagScope.POD):
            tags.append(("kubernetes-service-account", pod.service_account))
        if scope is TagScope.POD:
            tags += [("kubernetes-pod-name", pod.name), ("kubernetes-pod-uid", pod.uid)]
        return tuple(tags)

    def _fill(self, template: str, pod: Pod) -> str:
        values = {
            "cluster": self._settings.cluster,
            "namespace": pod.namespace,
            "serviceaccount": pod.service_account,
            "pod": pod.name,
        }
        return PLACEHOLDER.sub(lambda match: values[match.group(1)], template)
