"""Tag schemes: which sequences of tags are legal, and which entities they spell.

    IOB2    B-X I-X …, every entity begins with B (also called BIO)
    IOB1    I-X I-X …, B only where an entity of the same type ends right before; read as IOB2
    BIOES   B-X I-X … E-X, or S-X for a single word; BMES and BILOU spell the same otherwise
    plain   tags without a prefix (ANSWER, REST, O): a run of one tag is an entity

'O' is outside in each. Tags may be prefixes alone (B I O, or B M E S for the words of Chinese): all
entities are then of the type '_', as in seqeval. Ramshaw and Marcus (1995), Tjong Kim Sang and
Veenstra (1999), Ratinov and Roth (2009).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bert_ft.errors import InputError

# The prefixes of each scheme and the role each plays.
SCHEMES: dict[str, dict[str, str]] = {
    "IOB2": {"B": "B", "I": "I"},
    "IOB1": {"B": "B", "I": "I"},
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "plain": {},
}
OUTSIDE = "O"
READ = 2  # part of a cached set's key: raise it when the same tags are read as others than before
UNTYPED = "_"  # the type of a tag that is a prefix alone
# What an illegal step costs in Viterbi: more than any sum of log-probabilities over a window, and
# finite, so that a label set which allows no legal path still has a best one.
FORBIDDEN = -1e6

_PREFIXES = frozenset(prefix for roles in SCHEMES.values() for prefix in roles)
Span = tuple[str, int, int]  # type, first word, word after the last


def parse(tag: str, scheme: str) -> tuple[str, str]:
    """(role, type) of a tag: role B, I, E or S, 'O' outside, 'P' in a plain scheme. KeyError for a
    prefix that the scheme lacks."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if scheme == "plain":
        return "P", tag
    prefix, dash, kind = tag.partition("-")
    if dash and not kind:
        raise KeyError(tag)
    return SCHEMES[scheme][prefix], kind or UNTYPED


def legal(before: str, after: str, scheme: str) -> bool:
    """Whether `after` may follow `before`; '' is the border of a sentence."""
    if scheme == "plain":
        return True
    (role, kind), (role2, kind2) = (parse(t, scheme) if t else ("", "") for t in (before, after))
    if scheme == "IOB1":
        return role2 != "B" or (role in ("B", "I") and kind == kind2)
    goes_on = role in ("B", "I") and kind == kind2
    if scheme == "IOB2":
        return role2 != "I" or goes_on
    if role in ("B", "I"):  # an entity is open: it must go on or end
        return role2 in ("I", "E") and goes_on
    return role2 not in ("I", "E")


def fault(tags: Sequence[str], scheme: str) -> tuple[int, str] | None:
    """(index, what is wrong) of the first tag that the scheme forbids, None where all is well."""
    before = ""
    for i, tag in enumerate([*tags, ""]):
        try:
            fine = legal(before, tag, scheme)
        except KeyError:
            kind = "-TYPE" if any("-" in one for one in tags) else ""
            accepted = ", ".join([OUTSIDE, *(f"{p}{kind}" for p in SCHEMES[scheme])])
            return i, f"tag {tag!r} is none of {scheme}'s: {accepted}"
        if not fine and not tag:
            return i - 1, f"tag {before!r} ends the sentence, which {scheme} does not allow"
        if not fine:
            place = f"follows {before!r}" if before else "begins the sentence"
            return i, f"tag {tag!r} {place}, which {scheme} does not allow"
        before = tag
    return None


def detect(rows: Sequence[Sequence[str]], where: Callable[[int, int], str]) -> str:
    """The scheme that all rows of tags keep. InputError at the first tag that none allows;
    `where(row, word)` names a place."""
    seen = {tag for tags in rows for tag in tags} - {OUTSIDE}
    prefixed = {tag for tag in seen if re.fullmatch(r"[A-Z]-.+", tag)}
    if not prefixed and "B" in seen and seen <= _PREFIXES:
        prefixed = seen
    if not prefixed:
        _check_prefixes(seen, rows, where)
        return "plain"
    _check_typed(rows, where)
    letters = {tag[0] for tag in prefixed}
    fits = [name for name, roles in SCHEMES.items() if letters <= set(roles)]
    for name in fits:
        if _kept(rows, name):
            return name
    if not fits:
        unknown = letters - _PREFIXES
        odd = {tag for tag in prefixed if tag[0] in unknown} or prefixed
        i, k = next((i, k) for i, row in enumerate(rows) for k, t in enumerate(row) if t in odd)
        accepted = ", ".join(f"{name} ({''.join(r)})" for name, r in SCHEMES.items() if r)
        raise InputError(
            f"{where(i, k)}: tag {rows[i][k]!r}: no scheme has all prefixes of these tags "
            f"({', '.join(sorted(letters))}); accepted: those of {accepted}, or none at all"
        )
    check(rows, fits[0], where)
    raise AssertionError("a scheme without a fault was not detected")


def check(
    rows: Sequence[Sequence[str]], scheme: str, where: Callable[[int, int], str], why: str = ""
) -> None:
    """InputError at the first tag that the scheme forbids; `why` says what made it the scheme."""
    if scheme != "plain":
        _check_typed(rows, where)
    for i, tags in enumerate(rows):
        if found := fault(tags, scheme):
            keep = [name for name, roles in SCHEMES.items() if roles and _kept(rows, name)]
            other = f", or set task.scheme to {' or '.join(keep)} where all sets keep it"
            raise InputError(
                f"{where(i, found[0])}: {found[1]}{why and '; ' + why}; mend the tag"
                f"{other if keep else ''}"
            )


def _kept(rows: Sequence[Sequence[str]], scheme: str) -> bool:
    """Whether the scheme allows all tags of these rows."""
    return all(fault(tags, scheme) is None for tags in rows)


def _check_prefixes(
    seen: set[str], rows: Sequence[Sequence[str]], where: Callable[[int, int], str]
) -> None:
    """InputError where all tags have a prefix of some scheme that is none as it stands: in a small
    letter (b-per i-per o), with another sign than '-' (B_PER I_PER) or behind the type (PER-B
    PER-I); of some type there are two."""
    apart = all(re.fullmatch(r"[BIESLMU]_.+", tag) for tag in seen)
    behind = all(re.fullmatch(r".+[-_][BIESLMU]", tag) for tag in seen)
    types = {tag[2:] if apart else tag[:-2] for tag in seen}
    if (apart or behind) and len(types) < len(seen):
        i, k = next((i, k) for i, row in enumerate(rows) for k, t in enumerate(row) if t in seen)
        tag = rows[i][k]
        meant = f"{tag[0]}-{tag[2:]}" if apart else f"{tag[-1]}-{tag[:-2]}"
        raise InputError(
            f"{where(i, k)}: tag {tag!r} has a prefix in another form; accepted: {meant!r}; where "
            "tags have no prefixes, set task.scheme='plain'"
        )
    small = seen - {"o"}
    typed = small and all(re.fullmatch(r"[bieslmu]-.+", tag) for tag in small)
    if typed or {"b", "o"} <= seen and all(tag.upper() in _PREFIXES for tag in small):
        i, k = next((i, k) for i, row in enumerate(rows) for k, t in enumerate(row) if t in small)
        tag = rows[i][k]
        raise InputError(
            f"{where(i, k)}: tag {tag!r} has a prefix in a small letter; accepted: "
            f"{tag[0].upper() + tag[1:]!r}, and {OUTSIDE!r} outside; where tags have no prefixes, "
            "set task.scheme='plain'"
        )


def _check_typed(rows: Sequence[Sequence[str]], where: Callable[[int, int], str]) -> None:
    """InputError at the first tag without a type where others have one."""
    typed = next((tag for tags in rows for tag in tags if "-" in tag), "")
    for i, tags in enumerate(rows) if typed else ():
        for k, tag in enumerate(tags):
            if tag in _PREFIXES:
                raise InputError(
                    f"{where(i, k)}: tag {tag!r} has no type, as {typed!r} has one; accepted: "
                    f"{tag}-TYPE, or no type in any tag"
                )


def iob1_to_iob2(tags: Sequence[str]) -> list[str]:
    """The same entities in IOB2."""
    out: list[str] = []
    for i, tag in enumerate(tags):
        before = tags[i - 1] if i else OUTSIDE
        begins = tag[0] == "I" and (before == OUTSIDE or before[1:] != tag[1:])
        out.append("B" + tag[1:] if begins else tag)
    return out


def entities(tags: Sequence[str], scheme: str) -> list[Span]:
    """The entities that a sequence spells, legal or not, read strictly: what does not begin or end
    as the scheme says is none. seqeval's mode='strict'."""
    found: list[Span] = []
    roles = [parse(tag, scheme) for tag in tags]
    at = 0
    while at < len(roles):
        role, kind = roles[at]
        begin, at = at, at + 1
        if role == "P":
            while at < len(roles) and roles[at] == (role, kind):
                at += 1
            found.append((kind, begin, at))
        elif role == "S":
            found.append((kind, begin, at))
        elif role == "B":
            while at < len(roles) and roles[at] == ("I", kind):
                at += 1
            closed = scheme == "IOB2"
            if not closed and at < len(roles) and roles[at] == ("E", kind):
                closed, at = True, at + 1
            if closed:
                found.append((kind, begin, at))
    return found


def to_tags(spans: Iterable[Span], words: int) -> list[str]:
    """IOB2 tags of `words` words; the spans do not overlap."""
    tags = [OUTSIDE] * words
    for kind, begin, end in spans:
        tags[begin:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - begin - 1)]
    return tags


def forbidden(labels: Sequence[str], scheme: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 (C,), (C, C), (C,): 0 where a label may begin a sentence, follow another (row: the
    former) and end a sentence; FORBIDDEN where not."""

    def cost(before: str, after: str) -> float:
        return 0.0 if legal(before, after, scheme) else FORBIDDEN

    start = [cost("", label) for label in labels]
    steps = [[cost(a, b) for b in labels] for a in labels]
    end = [cost(label, "") for label in labels]
    return tuple(np.asarray(x, np.float32) for x in (start, steps, end))  # type: ignore[return-value]
