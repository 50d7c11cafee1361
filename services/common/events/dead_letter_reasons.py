"""Why a record went to its dead-letter topic: a word that readers may rely on. Imports nothing, so cores may use it."""

from __future__ import annotations

MALFORMED = "malformed"
ORPHAN = "orphan"
ITEM_NOT_EXPOSED = "item_not_exposed"
UNKNOWN_KIND = "unknown_kind"
VALUE_OUT_OF_RANGE = "value_out_of_range"
SCHEMA_MISMATCH = "schema_mismatch"
TOO_LATE = "too_late"
USER_MISMATCH = "user_mismatch"
NO_FEATURES = "no_features"
KILLED_WORKER = "killed_worker"
UNDELIVERABLE = "undeliverable"

# Not reasons of a letter but notes about one, in the same topic: `tunemesh dlq redrive` has taken it up, and has put its record back.
REDRIVE_CLAIMED = "redrive_claimed"
REDRIVEN = "redriven"
PII = "pii"
EXPIRED = "expired"
UNANSWERED = "unanswered"
REFUSED = "refused"
