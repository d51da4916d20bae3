"""What a fuzzer makes of the OpenAPI document: no request, however malformed, is a fault of ours."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from tests.serving.shop import Service

EXAMPLES = 60  # of each endpoint and way
MODES = {"as the document says": GenerationMode.POSITIVE, "malformed": GenerationMode.NEGATIVE}


@pytest.mark.parametrize("mode", MODES)
def test_no_request_makes_a_server_error_and_every_answer_is_as_documented(service: Service, mode: str):
    document = schemathesis.openapi.from_asgi("/openapi.json", service.app)
    statuses = Counter()
    for found in document.get_all_operations():
        operation = found.ok()
        takes_something = operation.body or operation.query
        if not takes_something and MODES[mode] == GenerationMode.NEGATIVE:
            continue

        @settings(
            max_examples=EXAMPLES if takes_something else 1,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=MODES[mode]))
        def ask(case: schemathesis.Case) -> None:
            answer = case.call()
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            case.validate_response(answer, checks=[schemathesis.checks.CHECKS.get_one("response_schema_conformance")])
            if answer.status_code >= 400:
                assert set(answer.json()) == {"error", "where"}

        ask()
    # What is well-formed comes through: with a list, or with the word that nobody knows the item. Some of it does not,
    # for a schema cannot say that queries times k has a limit.
    came = statuses[200] + statuses[404] if MODES[mode] == GenerationMode.POSITIVE else statuses[422]
    assert came > EXAMPLES / 2
    assert (statuses[200] > EXAMPLES / 10) == (MODES[mode] == GenerationMode.POSITIVE)
