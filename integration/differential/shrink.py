"""Makes a failing case small: takes parts of its configurations and steps away while it still fails."""

import copy


def parts(value, path=()):
    """Paths of everything that can be taken away, what holds most first at each level."""
    if isinstance(value, dict):
        below = list(value.items())
    elif isinstance(value, list):
        # From the end, so that what stays keeps its index.
        below = list(enumerate(value))[::-1]
    else:
        return
    for name, _ in below:
        yield (*path, name)
    for name, item in below:
        yield from parts(item, (*path, name))


def without(value, path):
    """A copy without what is at a path; None where it is not there (any more)."""
    made = copy.deepcopy(value)
    at = made
    try:
        for name in path[:-1]:
            at = at[name]
        del at[path[-1]]
    except (KeyError, IndexError, TypeError):
        return None
    return made


def halves(length):
    """Slices of a list to try without, from the big ones to the small."""
    size = length // 2
    while size >= 2:
        for start in range(0, length, size):
            yield start, min(start + size, length)
        size //= 2


def smaller(case):
    """Each case that is one step smaller, the biggest steps first."""
    if len(case["bundles"]) > 1:
        for key in list(case["bundles"])[1:]:
            yield case | {"bundles": {name: content for name, content in case["bundles"].items() if name != key},
                          "steps": [step for step in case["steps"] if not any("%s}" % key in word or word == key
                                                                              for word in step)]}
    steps = case["steps"]
    if len(steps) > 1:
        for number in range(len(steps) - 1, -1, -1):
            yield case | {"steps": steps[:number] + steps[number + 1:]}
    for key, content in case["bundles"].items():
        config = content.get("config")
        if not isinstance(config, (dict, list)):
            continue
        for path, value in lists(config):
            for start, end in halves(len(value)):
                made = copy.deepcopy(config)
                at = made
                for name in path:
                    at = at[name]
                del at[start:end]
                yield case | {"bundles": case["bundles"] | {key: content | {"config": made}}}
        for path in parts(config):
            made = without(config, path)
            if made is not None:
                yield case | {"bundles": case["bundles"] | {key: content | {"config": made}}}


def lists(value, path=()):
    """Every list of a document, with its path."""
    if isinstance(value, list):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from lists(item, (*path, name))


def shrink(case, still_fails, budget=150):
    """The smallest case found with at most `budget` tries of `still_fails(case) -> bool`."""
    again = True
    while again and budget > 0:
        again = False
        skip = 0
        while budget > 0:
            # After a success the walk goes on where it was: what failed before seldom helps now.
            candidate = next(iter_from(smaller(case), skip), None)
            if candidate is None:
                break
            budget -= 1
            if still_fails(candidate):
                case, again = candidate, True
            else:
                skip += 1
    return case


def iter_from(items, skip):
    for number, item in enumerate(items):
        if number >= skip:
            yield item
