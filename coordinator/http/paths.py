"""The path of every route, for the routes themselves, the table of scopes and the OpenAPI document."""

from __future__ import annotations

INDEX_PATH = "/"
"""The web page."""
ASSETS_PATH = "/page/"
"""The folder of the web page's files; the name of one follows."""

HEALTH_PATH = "/healthz"
READINESS_PATH = "/readyz"
METRICS_PATH = "/metrics"

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
EMBEDDINGS_PATH = "/v1/embeddings"
RESPONSES_PATH = "/v1/responses"
RESPONSE_PATH = RESPONSES_PATH + "/{response_id}"
RESPONSE_ITEMS_PATH = RESPONSE_PATH + "/input_items"
MESSAGES_PATH = "/v1/messages"
COUNT_PATH = MESSAGES_PATH + "/count_tokens"
MODELS_PATH = "/v1/models"
MODEL_PATH = MODELS_PATH + "/{model}"
OPENAPI_PATH = "/v1/openapi.json"

OLLAMA_PREFIX = "/api/"
"""Ollama's API, which many apps of its users speak and no other."""
OLLAMA_CHAT_PATH = "/api/chat"
OLLAMA_GENERATE_PATH = "/api/generate"
OLLAMA_EMBED_PATH = "/api/embed"
OLLAMA_EMBEDDINGS_PATH = "/api/embeddings"
OLLAMA_TAGS_PATH = "/api/tags"
OLLAMA_PS_PATH = "/api/ps"
OLLAMA_SHOW_PATH = "/api/show"
OLLAMA_PULL_PATH = "/api/pull"
OLLAMA_VERSION_PATH = "/api/version"

INFILL_PATH = "/infill"
COMPLETION_PATH = "/completion"
"""llama-server's own route, without an `s`; with one it is OpenAI's."""

FLEET_PATH = "/v1/moe2/fleet"
PLAN_PATH = "/v1/moe2/plan"
FEEDBACK_PATH = "/v1/moe2/feedback"
LEDGER_PATH = "/v1/moe2/ledger"
EVENTS_PATH = "/v1/moe2/events"
ORDERS_PATH = "/v1/moe2/orders"
"""Where an operator says what is served on which host."""

PUSHES_PATH = "/v1/moe2/pushes"
"""Where an operator has files sent to hosts."""

PULLS_PATH = "/v1/moe2/pulls"
"""Where an operator has hosts pull models."""

WISH_PATH = "/wishes"
"""A route of the local socket only, on which an operator says who sleeps and who stays awake."""
_SHORTENED = (CHAT_PATH, COMPLETIONS_PATH, RESPONSES_PATH, EMBEDDINGS_PATH, MODELS_PATH)
SHORT_PATHS = {
    "/health": HEALTH_PATH,
    **{path.removeprefix("/v1"): path for path in _SHORTENED},
}
"""Paths that clients use by habit, as they are served by llama-server and others, and the path of the route."""


def meant_path(path: str) -> str:
    """Returns the path that a client means, for one with a slash too many or without `/v1`."""
    if "//" in path or (path.endswith("/") and path != "/"):
        path = "/" + "/".join(part for part in path.split("/") if part)
    if path.startswith("/models/"):
        return "/v1" + path
    return SHORT_PATHS.get(path, path)


CALIBRATION_PATH = "/calibration"
"""A route of the local socket only; that of the status is `moe2.common.localclient.STATUS_ROUTE`."""
