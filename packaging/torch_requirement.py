"""For pyproject.toml: a wheel needs the very release of torch that it was built with."""

import importlib.metadata


def dynamic_metadata(settings, project):
    release = importlib.metadata.version("torch").partition("+")[0]
    return {"dependencies": [f"torch=={release}"]}
