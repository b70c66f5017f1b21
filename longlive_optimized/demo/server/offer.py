"""What of a viewer's offer is taken: one video section and one for data channels. The answer rejects all others.

aiortc answers every section or none, so it is shown the taken ones alone.
"""

from __future__ import annotations

import re

CODECS = "VP8", "H264"  # what aiortc encodes
MOST_CANDIDATES = 32  # that are looked at: each costs checks
DIGESTS = {"sha-256": 32, "sha-384": 48, "sha-512": 64}  # bytes of the certificates' fingerprints that aiortc compares
DIRECTIONS = "sendrecv", "recvonly", "sendonly", "inactive"
NEEDED = "ice-ufrag", "ice-pwd", "fingerprint", "setup"
# Of a bundle, only the first section need have these (RFC 9143, 7.1.3).
TRANSPORT = (*NEEDED, "ice-options", "candidate", "end-of-candidates", "rtcp-mux")
# An offer of aiortc's. As a viewer, its version 1.16 cannot be told that a section is rejected: it wants to have a
# transport for it, and for that a place in the bundle.
AIORTC = re.compile(r"o=- (\d+) \1 IN IP4 0\.0\.0\.0")


class BadOffer(ValueError):
    """An offer that is no offer to watch; the text says what is missing, and what helps."""


class _Section:
    def __init__(self, lines: list[str]):
        self.lines = lines
        self.kind, self.port, self.form = [*lines[0][2:].split(" ", 2), "", ""][:3]
        self.live = self.port != "0" or self.has("bundle-only")
        self.mid = next((line[6:] for line in lines if line.startswith("a=mid:")), None)

    def has(self, *names: str) -> bool:
        return any(_name(line) in names for line in self.lines)

    def values(self, *names: str) -> list[str]:
        return [line for line in self.lines if _name(line) in names]


class Offer:
    """A viewer's offer as it came. Raises BadOffer where there is nowhere to send the video."""

    def __init__(self, sdp: str):
        self._head, self._sections = _split(sdp)
        self._bundle = next((line.split()[1:] for line in self._head if line.startswith("a=group:BUNDLE")), [])
        mids = [line for section in self._sections for line in section.values("mid")]
        if len(mids) > len(set(mids)) or any(len(section.values("mid")) > 1 for section in self._sections):
            raise BadOffer(f"the offer's sections have {mids[:10]}: each must have one name of its own")
        live = [section for section in self._sections if section.live]
        videos = [section for section in live if section.kind == "video"]
        if not videos:
            kinds = [section.kind for section in live][:10]
            raise BadOffer(
                f"the offer has no video section{f', but {kinds}' if kinds else ''}: a viewer calls "
                "addTransceiver('video', {direction: 'recvonly'}) before it makes the offer"
            )
        # Sections that say nothing have the session's direction, or else sendrecv; aiortc wants it said.
        usual = next((line for line in self._head if _name(line) in DIRECTIONS), "a=sendrecv")
        for section in videos:
            section.lines += [] if section.has(*DIRECTIONS) else [usual]
        watching = [section for section in videos if not section.has("sendonly", "inactive")]
        if not watching:
            raise BadOffer("the offer's video section takes no video: its direction must be recvonly, or sendrecv")
        names = [line.split(" ", 1)[-1].split("/")[0] for line in watching[0].values("rtpmap")]
        if not {name.upper() for name in names} & set(CODECS):
            raise BadOffer(f"the offer's video section has {names[:10]}: the server sends {' and '.join(CODECS)}")
        channels = [section for section in live if section.kind == "application" and "DTLS/SCTP" in section.form]
        self._taken = [section for section in self._sections if section is watching[0] or section in channels[:1]]
        first = next((section for section in self._sections if section.mid in self._bundle[:1]), None)
        # Where its bundlePolicy is max-bundle, Chromium takes no answer that rejects the one section with addresses.
        alone = first and first not in self._taken and first.has("candidate") and not watching[0].has("candidate")
        self._carrier = first if alone else None
        self._from_aiortc = any(map(AIORTC.match, self._head))
        self._inherit(first)

    def taken(self, local: bool) -> str:
        """The offer with what is taken alone; local: without the candidates that a server on loopback cannot reach."""
        lines = [line for line in self._head if not line.startswith("a=group:BUNDLE")] + self._group(self._taken)
        candidates = 0
        for line in (line for section in self._taken for line in section.lines):
            if _name(line) == "candidate":
                candidates += 1
                if candidates > MOST_CANDIDATES or (local and not _is_local(line)):
                    continue
            # A browser's ``.local`` names cost a second to look up. Its own checks make it known, so there are more.
            if not (local and _name(line) == "end-of-candidates"):
                lines.append(line)
        return _join(lines)

    def answer(self, sdp: str) -> str:
        """The answer to the whole offer; sdp: aiortc's answer to what is taken."""
        head, own = _split(sdp)
        answers, lines = iter(own), []
        for section in self._sections:
            if section in self._taken:
                first, *rest = next(answers).lines
                lines += [_in_the_form_of(section, first), *rest]
                continue
            port = 9 if section is self._carrier else 0
            lines += [f"m={section.kind} {port} {section.form}", "c=IN IP4 0.0.0.0", "a=inactive"]
            lines += section.values("mid", "rtcp-mux")
            if port or self._from_aiortc:
                lines += section.values("rtpmap", "fmtp", "sctp-port") + own[0].values("rtcp", *TRANSPORT)
        more = [section for section in self._sections if section not in self._taken] if self._from_aiortc else []
        carrier = [self._carrier] if self._carrier else []
        group = self._group([*carrier, *self._taken, *more])
        return _join([line for line in head if not line.startswith("a=group:BUNDLE")] + group + lines)

    def _inherit(self, first: _Section | None) -> None:
        """Give the taken sections what stands in the bundle's first section alone; BadOffer if it is nowhere."""
        for section in self._taken:
            if first and section.mid in self._bundle:
                section.lines += first.values(*(name for name in TRANSPORT if not section.has(name)))
            wanted = (*NEEDED, "rtcp-mux") if section.kind == "video" else NEEDED
            there = {_name(line) for line in self._head + section.lines}
            if missing := [f"a={name}" for name in wanted if name not in there]:
                raise BadOffer(
                    f"the offer's {section.kind} section has no {' and no '.join(missing)}: "
                    "only encrypted connections with all media on one port are made, as browsers offer them"
                )
            prints = section.values("fingerprint") or [line for line in self._head if _name(line) == "fingerprint"]
            if not any(map(_is_fingerprint, prints)):
                raise BadOffer(f"the offer says {prints[0][:40]!r}: a fingerprint must be one of {', '.join(DIGESTS)}")

    def _group(self, sections: list[_Section]) -> list[str]:
        mids = [section.mid for section in sections if section.mid in self._bundle]
        return [" ".join(["a=group:BUNDLE", *mids])] if mids else []


def _split(sdp: str) -> tuple[list[str], list[_Section]]:
    head, sections = [], []
    for line in re.split(r"[\r\n]+", sdp.strip()):
        if line.startswith("m="):
            sections.append([line])
        else:
            (sections[-1] if sections else head).append(line)
    return head, [_Section(lines) for lines in sections]


def _join(lines: list[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)


def _in_the_form_of(section: _Section, line: str) -> str:
    """aiortc's ``m=`` line with the offer's transport, which it writes in its own form (RFC 3264, 6)."""
    form = section.form.split(" ")[0]
    return re.sub(r"^(\S+ \S+) \S+", lambda found: f"{found[1]} {form}", line)


def _is_fingerprint(line: str) -> bool:
    algorithm, _, digest = line.partition(":")[2].strip().partition(" ")
    size = DIGESTS.get(algorithm.lower())
    return size is not None and re.fullmatch(rf"[0-9A-Fa-f]{{2}}(:[0-9A-Fa-f]{{2}}){{{size - 1}}}", digest) is not None


def _name(line: str) -> str:
    """The name of an attribute line; empty for others."""
    return line[2:].partition(":")[0] if line.startswith("a=") else ""


def _is_local(candidate: str) -> bool:
    return any(word.startswith("127.") or word == "::1" for word in candidate.split()[4:5])
