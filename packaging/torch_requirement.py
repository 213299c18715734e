"""For pyproject.toml: a wheel needs the very release of torch that it was built with."""

import importlib.metadata


def dynamic_metadata(field, settings):
    release = importlib.metadata.version("torch").partition("+")[0]
    return [f"torch=={release}"]
