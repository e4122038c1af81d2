"""A circuit as a page: what is in it, without a browser."""

import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from circuits.graph import Circuit, Edge, GraphError, Profile
from circuits.graph.page import graph_fragment, graph_page
from tests import graphs

CIRCUITS = graphs.kinds()


class _Scripts(HTMLParser):
    """The contents of a page's script elements, as a browser tells them apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "script":
            self._inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


def told(page: str) -> dict[str, Any]:
    """The JSON in a page."""
    data, script = _Scripts(page).found
    assert script.strip().startswith("(() =>")
    return json.loads(data)


@pytest.mark.parametrize("name", CIRCUITS)
def test_a_page_holds_its_circuit_and_no_addresses(name: str) -> None:
    circuit = CIRCUITS[name]
    page = graph_page(circuit, graphs.bank(), "a </title><script> of mine")
    found = told(page)
    filled = [*map(json.dumps, found["groups"]), found["record"], ""]
    file = "".join(part + value for part, value in zip(found["file"], filled, strict=True))
    assert Circuit.of_json(json.loads(file)) == circuit
    apart = page.replace(_Scripts(page).found[0], "")
    assert not re.search(r"https?:|//[a-z]|\ssrc=|<link|@import|url\((?!#)", apart)
    assert "<title>a &lt;/title&gt;&lt;script&gt; of mine</title>" in page
    assert page.encode("utf-8").decode() == page


def test_the_page_says_what_it_is_of_and_what_must_not_be_missed() -> None:
    record = graphs.RECORD | {"direction": "denoising", "saes_keep": {"gate": "THEY LOSE <IT>"}}
    page = graph_page(replace(graphs.small(), record=record))
    text = html.unescape(re.sub("<[^>]+>", "", page))
    for line in (
        "task error_type · contrast ZeroDivisionError/TypeError · template made · model "
        "org/tiny-model · pairs 12 · method integrated gradients · direction denoising · "
        "reference mean",
        "4 latents + 1 error + 1 offset, 7 edges · in units of the logit difference: positive "
        "(blue) = toward clean, negative (red) = away",
        "THEY LOSE <IT>",
    ):
        assert line in text
    assert "summed over positions" in graph_page(graphs.summed())
    record = graphs.RECORD | {"reference": None, "references": ["zero", "mean"], "nodes": 1200}
    text = graph_page(replace(graphs.small(), record=record))
    assert "reference <b>zero, mean</b>" in text
    assert "1 offset (the strongest 6 of 1,200 nodes), 7 edges" in text


def test_cards_are_those_of_the_circuit_s_latents() -> None:
    found = told(graph_page(graphs.small(), graphs.bank()))["bank"]
    assert found["cards"].keys() == {"resid_post.12/3", "resid_post.6/7"}
    card, words = found["cards"]["resid_post.12/3"], found["words"]
    assert card["text"] == "on ␣/ 60%, ) 20% | after 1 50% | toward Zero, ␣division"
    assert [[words[word], value] for word, value in card["raised"]] == [
        ["Zero", 1.25],
        ["␣division", 0.5],
    ]
    assert [[words[word], value] for word, value in card["lowered"]] == [["</script>", -0.75]]
    assert [[words[word], share] for word, share in card["at"]] == [["␣/", 0.6], [")", 0.2]]
    value, peak, shown, shares = card["examples"][0]
    # The token before the context's beginning is left out, and the peak stands one earlier.
    assert (value, peak, [words[word] for word in shown]) == (8, 1, ["1", "␣/", ")"])
    assert shares == [25, 100, 0]
    assert told(graph_page(graphs.small()))["bank"] is None


def test_a_bank_of_other_saes_is_refused() -> None:
    bank = graphs.bank()
    saes = [{**bank.record["saes"][0], "sha256": "cd" * 32}, *bank.record["saes"][1:]]
    other = replace(bank, record=bank.record | {"saes": saes})
    with pytest.raises(GraphError, match=r"another SAE at resid_post\.6"):
        graph_page(graphs.small(), other)
    # Where one of the two does not say, there is nothing to compare.
    graph_page(replace(graphs.small(), record={}), other)


def test_numbers_that_are_not_finite_are_refused() -> None:
    circuit = graphs.small()
    for changed in (
        replace(circuit, edges=(Edge(0, None, math.nan),)),
        replace(circuit, nodes=(replace(circuit.nodes[0], high=math.inf),), edges=()),
        replace(circuit, profiles={"z.22/3": Profile((math.nan,), (0.0,))}),
    ):
        with pytest.raises(GraphError, match="not finite"):
            graph_page(changed)


def test_a_fragment_is_the_page_in_a_frame() -> None:
    fragment = graph_fragment(graphs.hostile(), title='a "title"', height=700)
    given = re.fullmatch(
        r'<iframe title="([^"]*)" style="[^"]*" srcdoc="([^"]*)"></iframe>', fragment
    )
    assert given and html.unescape(given[1]) == 'a "title"'
    assert html.unescape(given[2]) == graph_page(graphs.hostile(), title='a "title"')
    assert "height: 700px" in fragment
