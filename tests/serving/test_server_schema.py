"""The OpenAPI document, and requests made from it: whatever they are, the server has no error of its own."""

import re
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest
from http_server import running_server

from sama.serving.server import create_app


if find_spec("schemathesis") is None:  # imported where it is used: every test process imports this file
    pytest.skip("schemathesis is not installed: pip install -e .[dev]", allow_module_level=True)

ROUTES = {
    "/health": {"get"},
    "/metrics": {"get"},
    "/v1/models": {"get"},
    "/v1/examples": {"get"},
    "/v1/files": {"post"},
    "/v1/files/{file_id}": {"get", "delete"},
    "/v1/files/{file_id}/content": {"get"},
    "/v1/files/{file_id}/frames/{frame}": {"get"},
    "/v1/chat/completions": {"post"},
    "/v1/regions/preview": {"post"},
    "/v1/exports": {"post"},
}


@pytest.fixture(scope="module")
def document(server) -> dict:
    return server.get("/openapi.json").json()


def test_document_has_every_route_and_their_errors(document):
    assert {path: set(operations) for path, operations in document["paths"].items()} == ROUTES
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["description"] and "422" not in operation["responses"]
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


def test_every_reference_of_the_document_exists(document):
    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert names <= set(document["components"]["schemas"]) and "ChatChunk" in document["components"]["schemas"]


def test_documentation_page_loads_nothing_from_other_hosts(server, document):
    page = server.get("/docs").body.decode()
    assert "<script" not in page and " style=" not in page
    addresses = re.findall(r'(?:src|href)="([^"#]+)', page)
    assert addresses and all(not urlsplit(address).netloc for address in addresses)
    for address in addresses:
        assert server.get(f"/{address}").status == 200
    for name in (*ROUTES, *document["components"]["schemas"]):
        assert name in page


def check_examples(client, limits, number: int) -> None:
    """Sends requests to every route that are made from the document, half of them wrong."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    api = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
    sent = 0
    for result in api.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
                continue  # there is nothing that could be wrong
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=number, deadline=None, database=None, derandomize=True,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=strategy)
            def check(case):
                nonlocal sent
                response = case.call()
                assert response.status_code < 500, (case.as_curl_command(), response.text)
                if response.status_code >= 400:
                    error = response.json()["error"]
                    assert error["message"] and "Traceback" not in error["message"]
                sent += 1

            check()
    assert sent >= number * len(ROUTES)


@pytest.fixture(scope="module")
def client(engine, store, limits):
    """A server of its own: its examples would fill the other one's metrics."""
    with running_server(create_app(engine, store, limits), limits) as client:
        yield client


def test_no_example_is_an_error_of_the_server(client, limits):
    check_examples(client, limits, 2)


@pytest.mark.slow
def test_no_example_of_many_is_an_error_of_the_server(client, limits):
    check_examples(client, limits, 100)
