"""What the HTTP door takes and gives, as OpenAPI says it, and the status of each kind of refusal."""

from typing import Any

from st4vla.platform.wire.stamps import KEY

STATUS = {
    "unauthorized": 401,
    "forbidden": 403,
    "too_large": 413,
    "rate_limited": 429,
    "overloaded": 503,
    "unavailable": 503,
    "deadline": 504,
    "stale": 409,
    "stopped": 423,
    "internal": 500,
}
ELSE = 400
ROWS_SCHEMA = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
POINTS_SCHEMA = {**ROWS_SCHEMA, "description": "[[x, y], ...] in pixels"}
IMAGE_SCHEMA = {
    "type": "object",
    "required": ["format", "data"],
    "properties": {
        "format": {"enum": ["png", "jpeg", "raw"]},
        "data": {"type": "string", "contentEncoding": "base64"},
        "shape": {"type": "array", "items": {"type": "integer"}, "description": "[H, W, 3], where the format is raw"},
    },
}
STAMP_SCHEMA = {
    "type": "object",
    "properties": {
        "robot": {"type": "string"},
        "session": {"type": "string"},
        "sequence": {"type": "integer", "minimum": 0},
        "deadline_ms": {"type": "number", "minimum": 0},
        "delay_steps": {"type": "integer", "minimum": 0},
        "executed_steps": {"type": "integer", "minimum": 0},
        "executed_of": {"type": "integer", "minimum": 0},
        "at_rest": {"type": "boolean"},
        "spatial": {"type": "boolean"},
        "recording": {"type": "boolean"},
        "remaining": {
            **ROWS_SCHEMA,
            "description": "what remains of the chunk being executed, where the server does not know it",
        },
        "end": {
            "enum": ["episode", "session"],
            "description": "it is over; the message needs a session and nothing else, and is answered without actions",
        },
        "success": {"type": "boolean", "description": "how the episode that ended went"},
    },
}
ACT_SCHEMA = {
    "type": "object",
    "description": "images and instruction are needed unless the message ends something",
    "properties": {
        "images": {"type": "object", "additionalProperties": IMAGE_SCHEMA},
        "state": {"type": ["array", "null"], "items": {"type": "number"}},
        "instruction": {"type": "string"},
        KEY: STAMP_SCHEMA,
    },
}
GROUND_SCHEMA = {
    "type": "object",
    "required": ["image", "question"],
    "properties": {"image": IMAGE_SCHEMA, "question": {"type": "string"}},
}
SPATIAL_SCHEMA = {
    "type": ["object", "null"],
    "description": "what System 2 grounded, in pixels of the planner's view",
    "properties": {
        "label": {"type": "string"},
        "box": {"type": ["array", "null"], "items": {"type": "number"}, "description": "[x1, y1, x2, y2]"},
        "points": POINTS_SCHEMA,
        "trajectory": POINTS_SCHEMA,
    },
}
REPLY_STAMP_SCHEMA = {
    "type": "object",
    "properties": {
        "session": {"type": "string"},
        "sequence": {"type": "integer"},
        "plan_age_ms": {"type": "number"},
        "model_version": {"type": "string"},
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
        "interventions": {"type": "array", "items": {"type": "string"}},
        "spatial": SPATIAL_SCHEMA,
        "end": {"type": "string", "description": "in place of all but session and sequence, where something was ended"},
    },
}
ACT_REPLY_SCHEMA = {
    "type": "object",
    "required": [KEY],
    "properties": {
        "actions": {**ROWS_SCHEMA, "description": "[T, A] in the robot's units, one row a control step"},
        KEY: REPLY_STAMP_SCHEMA,
    },
}
GROUND_REPLY_SCHEMA = {
    "type": "object",
    "required": ["answer", "spatial", "model_version"],
    "properties": {"answer": {"type": "string"}, "spatial": SPATIAL_SCHEMA, "model_version": {"type": "string"}},
}
REFUSAL_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["kind", "field", "message"],
            "properties": {name: {"type": "string"} for name in ("kind", "field", "message")},
        }
    },
}


def described(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """Say in OpenAPI what a path takes, what it answers, and how it refuses."""
    kinds: dict[int, list[str]] = {ELSE: ["malformed", "missing", "invalid"]}
    for kind, status in STATUS.items():
        kinds.setdefault(status, []).append(kind)
    refusals = {status: said(", ".join(names), REFUSAL_SCHEMA) for status, names in sorted(kinds.items())}
    return {
        "response_model": None,
        "responses": {200: said("Answered.", answer), **refusals},
        "openapi_extra": {"requestBody": {"required": True, "content": content(request)}},
    }


def said(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": content(schema)}


def content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
