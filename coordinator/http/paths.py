"""The paths of the routes that more than one place has to name."""

from __future__ import annotations

PLAN_PATH = "/v1/moe2/plan"

EVENTS_PATH = "/v1/moe2/events"

FEEDBACK_PATH = "/v1/moe2/feedback"

LEDGER_PATH = "/v1/moe2/ledger"

OPENAPI_PATH = "/v1/openapi.json"

ASSETS_PATH = "/page/"

CALIBRATION_PATH = "/calibration"
