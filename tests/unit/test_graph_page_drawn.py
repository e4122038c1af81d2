"""A circuit's page as a browser draws it: with real pointer and key events, opened from disk."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuits.graph import Circuit
from circuits.graph.page import graph_fragment, graph_page
from tests import graphs
from tests.chromium import Chromium, Page, find_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium on PATH: install one, or name it in CIRCUITS_CHROMIUM")
    with Chromium(program) as running:
        yield running


def test_the_browser_tells_what_a_page_does_wrong(browser: Chromium, tmp_path: Path) -> None:
    path = tmp_path / "wrong.html"
    path.write_text("<script>console.error('no'); missing()</script><img src='no.png'>")
    page = browser.open(path)
    page.frame()
    said = json.dumps(page.problems)
    assert "missing is not defined" in said and '"value": "no"' in said
    assert page.requests == [path.as_uri(), (tmp_path / "no.png").as_uri()]


@pytest.fixture
def show(browser: Chromium, tmp_path: Path) -> Any:
    """Opens a circuit's page from disk; its tests check that nothing was logged or fetched."""
    opened: list[Page] = []

    def open_page(
        circuit: Circuit,
        bank: Any = None,
        width: int = 950,
        title: str = "t",
        drawn: int | None = None,
    ) -> Page:
        path = tmp_path / f"page-{len(opened)}.html"
        path.write_text(graph_page(circuit, bank, title, drawn), encoding="utf-8")
        opened.append(browser.open(path, width))
        assert opened[-1].requests == [path.as_uri()]
        return opened[-1]

    yield open_page
    for page in opened:
        assert page.problems == []
        assert len(page.requests) == 1


def test_sites_go_up_tokens_across_and_the_metric_is_on_top(show: Any) -> None:
    circuit = graphs.small()
    page = show(circuit)
    found = graphs.boxes(page)
    assert found.keys() == {*(f"node:{i}" for i in range(6)), "metric"}
    for i, one in enumerate(circuit.nodes):
        for k, other in enumerate(circuit.nodes):
            mine, theirs = found[f"node:{i}"], found[f"node:{k}"]
            if circuit.sites.index(one.node.site) < circuit.sites.index(other.node.site):
                assert mine["y"] > theirs["y"] + theirs["h"]
            if (one.node.position or 0) < (other.node.position or 0):
                assert mine["x"] + mine["w"] < theirs["x"]
    metric = found.pop("metric")
    assert all(metric["y"] + metric["h"] < box["y"] for box in found.values())
    assert page.text("[data-id=metric]") == "logit difference"
    names = page.run("[...document.querySelectorAll('.site')].map((made) => made.textContent)")
    assert names == ["mlp_out.22", "z.22", "resid_post.12", "resid_post.6"]
    labels = page.run(
        "[...document.querySelectorAll('.token')].map((t) => "
        "[...t.querySelectorAll('tspan')].map((s) => s.textContent).join(' '))"
    )
    assert [label.replace(" · ", " ") for label in labels] == ["␣w0", "␣/ ␣- op", "4|…", "␣w3"]


def test_signs_are_colours_effects_are_areas_and_errors_diamonds(show: Any) -> None:
    page = show(graphs.small())
    fills = page.run("[...document.querySelectorAll('.mark')].map((m) => m.getAttribute('fill'))")
    blue, red = "#2171b5", "#cb181d"
    assert fills == [blue, "url(#hatch-negative)", blue, blue, red, blue]
    shapes = page.run("[...document.querySelectorAll('.mark')].map((m) => m.getAttribute('d'))")
    assert ["a" in shape for shape in shapes] == [True, False, True, True, True, False]
    assert shapes[1].count("L") == 3 and shapes[5].count("L") == 2
    found = graphs.boxes(page)
    line = 1.0  # a mark's outline
    width = [found[f"node:{i}"]["w"] - line for i in range(6)]
    assert (width[2] / width[0]) ** 2 == pytest.approx(0.2 / 0.5, rel=0.15)
    legend = page.text("#legend")
    for word in ("latent", "error", "offset", "toward clean", "away from clean", "0.500"):
        assert word in legend
    assert page.run("document.querySelectorAll('#hatch-negative').length") == 1


@pytest.mark.parametrize("width", [950, 1700])
def test_no_node_covers_another(show: Any, width: int) -> None:
    names = [one.node for one in graphs.large(300, 10).nodes]
    circuit = graphs.large(300, 10).grouped({"a long name of a group": names[:7], "b": names[7:9]})
    page = show(circuit, width=width)
    found = list(graphs.boxes(page).values())
    assert len(found) == 300 - 9 + 2 + 1
    for i, one in enumerate(found):
        for other in found[:i]:
            apart = max(abs(one["x"] + one["w"] / 2 - other["x"] - other["w"] / 2)
                        - (one["w"] + other["w"]) / 2,
                        abs(one["y"] + one["h"] / 2 - other["y"] - other["h"] / 2)
                        - (one["h"] + other["h"]) / 2)  # fmt: skip
            # Diamonds and circles on neighbouring lines: their boxes may touch by an outline.
            assert apart > -1.5
    inner = page.run("document.documentElement.clientWidth")
    assert page.run("document.documentElement.scrollWidth") <= inner


def test_the_slider_chooses_edges_by_weight(show: Any) -> None:
    page = show(graphs.large(100, 400))
    shown, before = page.text("#shown"), page.painted("#edges")
    assert re.fullmatch(r"\d.*% of the largest \(\S+\): 1[12]\d of 400 shown", shown)
    page.run("document.getElementById('threshold').focus()")
    page.press("End", 35)
    assert page.text("#shown").endswith("1 of 400 shown")
    few = page.painted("#edges")
    page.press("Home", 36)
    assert page.text("#shown") == "the weakest on: all 400 shown"
    assert 0 < few < before < page.painted("#edges")
    # Of small's edges from 0.01 to 0.4, those of at least a tenth of the largest.
    page = show(graphs.small())
    page.run(
        "(() => { const s = document.getElementById('threshold');"
        "s.value = Math.round(1000 * (1 - Math.log(0.11) / Math.log(0.01 / 0.4)));"
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert page.text("#shown") == "11% of the largest (0.0441): 5 of 7 shown"


def test_pointing_shows_numbers_and_all_edges_of_a_node(show: Any) -> None:
    page = show(graphs.small())
    page.run(
        "(() => { const s = document.getElementById('threshold');"
        "s.value = 1000; s.dispatchEvent(new Event('input')); })()"
    )
    page.move(graphs.unit(0))
    assert page.text("#tip") == (
        "latent 3 at resid_post.12, position 1 op “␣/” / “␣-” on / "
        "effect +0.500 [+0.400, +0.600], positive (blue) = toward clean "
        "taking it out costs 12.5 points of faithfulness 2 edges in, 2 out"
    )
    assert page.painted("#lit") > page.painted("#edges")
    lit = "[...document.querySelectorAll('.unit.on')].map((made) => made.dataset.id)"
    assert page.run(lit) == ["node:0", "node:1", "node:2", "node:3", "node:4"]
    page.move(graphs.unit(1))
    assert "effect -0.300, negative (red) = away from clean" in page.text("#tip")
    page.mouse("mouseMoved", (500, 5))
    page.frame()
    assert page.run("document.getElementById('tip').hidden")
    assert page.painted("#lit") == 0


def test_pointing_at_an_edge_shows_its_weight(show: Any) -> None:
    page = show(graphs.small())
    found = graphs.boxes(page)
    source, target = found["node:0"], found["node:3"]
    middle = (
        (source["x"] + source["w"] / 2 + target["x"] + target["w"] / 2) / 2,
        (source["y"] + target["y"] + target["h"]) / 2,
    )
    page.mouse("mouseMoved", middle)
    page.frame()
    assert page.text("#tip") == (
        "latent 3 at resid_post.12, position 1 op “␣/” / “␣-” → latent 3 at z.22, position 3 “␣w3” "
        "weight +0.400, 100% of the largest positive (blue) = toward clean"
    )


@pytest.mark.parametrize("width", [950, 1700])
def test_a_click_shows_the_card_and_escape_goes_back(show: Any, width: int) -> None:
    page = show(graphs.small(), graphs.bank(), width)
    assert page.text("#panel").startswith("Edges lead up.")
    page.click(graphs.unit(0))
    card = page.text("#panel")
    for part in (
        "latent 3 at resid_post.12, position 1 op “␣/” / “␣-”",
        "effect +0.500 [+0.400, +0.600], positive (blue) = toward clean",
        "coefficient clean 7.50, corrupted 0",
        "taking it out of the circuit costs 12.5 points of faithfulness",
        "activations on this prompt: ■ clean, □ corrupted (largest 7.50)",
        "active at 5.0% of 1,000 positions, mean 2.50 when active, largest 8.00",
        "8.00 1 /)",
        "+1.25 Zero +0.500 ␣division",
        "-0.750 </script>",
        "60% ␣/",
        "50% 1",
        "-0.300 error at resid_post.6",
        "+0.400 latent 3 at z.22",
    ):
        assert part in card
    bars = page.run(
        "[...document.querySelectorAll('#panel rect title')].map((made) => made.textContent)"
    )
    assert bars[2:4] == ["␣/ / ␣-: clean 7.50", "␣/ / ␣-: corrupted 0"]
    peaks = page.run("[...document.querySelectorAll('.peak')].map((made) => made.textContent)")
    assert peaks == [" /", " /"]
    # The graph's node is in sight above or beside its card.
    node = page.run(f"document.querySelector('{graphs.unit(0)}').getBoundingClientRect().bottom")
    panel = page.run(
        "(({x, y}) => [x, y])(document.getElementById('panel').getBoundingClientRect())"
    )
    assert node < panel[1] if width == 950 else panel[0] > width / 2
    page.click("#panel tr.link:last-child")  # of the incoming edges: the weaker
    assert page.text("#panel h2") == "latent 7 at resid_post.6, position 1 op “␣/” / “␣-”"
    page.press("Escape", 27)
    assert page.text("#panel").startswith("Edges lead up.")
    page.click("[data-id=metric]")
    assert "-0.0500 latent 3 at mlp_out.22" in page.text("#panel")


def test_nodes_without_a_card_say_why(show: Any) -> None:
    page = show(graphs.small())
    page.click(graphs.unit(0))
    assert "circuits features --saes NAME" in page.text("#panel")
    page.click(graphs.unit(1))
    assert "does not reconstruct" in page.text("#panel")
    page.click(graphs.unit(5))
    assert "scale and offset" in page.text("#panel")
    page = show(graphs.small(), graphs.bank())
    page.click(graphs.unit(3))
    assert "The feature bank has no latent 3 at z.22." in page.text("#panel")


def test_nodes_can_be_reached_and_opened_with_keys(show: Any) -> None:
    page = show(graphs.small())
    page.run(f"document.querySelector('{graphs.unit(2)}').focus()")
    page.press("ArrowUp", 38)
    focused = page.run("[document.activeElement.dataset.id, document.activeElement.ariaLabel]")
    assert focused == [
        "node:0",
        "latent 3 at resid_post.12, position 1 op “␣/” / “␣-”, effect +0.500, "
        "positive (blue) = toward clean",
    ]
    page.press("Enter", 13)
    assert page.text("#panel h2").startswith("latent 3 at resid_post.12")


def saved(page: Page, folder: Path) -> Circuit:
    """What the page's button saves, read as any circuit's file."""
    path = page.download("#save", folder)
    circuit = Circuit.load(path)
    path.unlink()  # or the next would get another name
    return circuit


def test_nodes_are_grouped_by_hand_and_the_file_keeps_it(show: Any, tmp_path: Path) -> None:
    circuit, folder = graphs.small(), tmp_path / "saved"
    folder.mkdir()
    page = show(circuit)
    assert saved(page, folder) == circuit
    page.click(graphs.unit(0), shift=True)
    page.click("#selecting")  # from here on plain clicks add as well
    page.click(graphs.unit(2))
    assert page.text("#selected") == "2 nodes selected"
    page.click("#name")
    page.type("the <operator>")
    page.press("Enter", 13)
    assert graphs.boxes(page).keys() == {
        "group:the <operator>",
        "metric",
        *(f"node:{i}" for i in (1, 3, 4, 5)),
    }
    grouped = circuit.grouped({"the <operator>": [circuit.nodes[0].node, circuit.nodes[2].node]})
    assert saved(page, folder) == grouped
    page.click("[data-id='group:the <operator>']")
    panel = page.text("#panel")
    assert "2 nodes, sum of effects +0.700, 1 edges among them" in panel
    # Edges of both members to z.22's latent are one.
    assert "+0.410 latent 3 at z.22" in panel
    page.click("#groups button")
    assert len(graphs.boxes(page)) == 7
    page.click("#groups button")
    page.click("[data-id='group:the <operator>']")
    page.run("[...document.querySelectorAll('#panel button')].at(-1).click()")  # Ungroup
    assert saved(page, folder) == circuit
    assert show(grouped).run("document.querySelectorAll('[data-id^=group]').length") == 1


def test_nodes_that_are_not_drawn_are_kept_in_the_file(show: Any, tmp_path: Path) -> None:
    circuit, folder = graphs.small(), tmp_path / "saved"
    folder.mkdir()
    page = show(circuit, drawn=3)
    assert graphs.boxes(page).keys() == {"node:0", "node:1", "node:2", "metric"}
    assert page.text("#shown") == "the weakest on: all 2 shown"
    assert "(the strongest 3 of 6 nodes)" in page.text("header")
    page.click(graphs.unit(2), shift=True)
    page.click("#name")
    page.type("alone")
    page.press("Enter", 13)
    assert saved(page, folder) == circuit.grouped({"alone": [circuit.nodes[2].node]})


def test_texts_cannot_break_the_page(show: Any, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    page = show(graphs.hostile(), graphs.bank(), title="</title><script>window.broken = 1</script>")
    page.move(graphs.unit(0))
    page.click(graphs.unit(0))
    page.click("[data-id^=group]")
    assert "</script><script>window.broken = 1</script>" in page.text("#panel h2")
    assert page.run("window.broken === undefined && document.images.length === 0")
    assert page.run("document.title") == "</title><script>window.broken = 1</script>"
    assert saved(page, folder) == graphs.hostile()


def test_pages_of_all_circuits_open(show: Any) -> None:
    for name, circuit in graphs.kinds().items():
        page = show(circuit, graphs.bank())
        # Two nodes in one group are one mark.
        assert len(graphs.boxes(page)) == len(circuit) + 1 - (name == "grouped"), name
        if circuit.nodes:
            page.move(graphs.unit(3))
            page.click(graphs.unit(3))
        page.click("[data-id=metric]")
    page = show(replace(graphs.small(), edges=()))
    assert page.text("#shown") == "no edges"
    page = show(graphs.nothing())
    assert "The circuit has no nodes." in page.text("#panel")


def test_summed_circuits_are_laid_out_by_site_and_effect(show: Any) -> None:
    page = show(graphs.summed())
    found = graphs.boxes(page)
    # Two latents and an offset stand at mlp_out.22 and resid_post.6: the stronger to the left.
    assert found["node:1"]["x"] < found["node:2"]["x"]
    assert found["node:4"]["x"] < found["node:5"]["x"]
    assert page.run("document.querySelectorAll('.token').length") == 0
    page.move(graphs.unit(0))
    assert page.text("#tip").startswith("latent 3 at resid_post.12, all positions")


def test_two_fragments_on_one_page_do_not_meet(browser: Chromium, tmp_path: Path) -> None:
    parts = graph_fragment(graphs.small()) + graph_fragment(graphs.summed(), graphs.bank())
    path = tmp_path / "both.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><h1 id=panel>x</h1>{parts}", encoding="utf-8"
    )
    page = browser.open(path)
    counts = (
        "[...document.querySelectorAll('iframe')].map((frame) => "
        "frame.contentDocument.querySelectorAll('.unit').length)"
    )
    page.run("new Promise((done) => setTimeout(done, 300))")
    assert page.run(counts) == [7, 7]
    assert page.problems == []
    assert all(one.startswith(("file:", "about:srcdoc")) for one in page.requests)


_ACTIONS = """
window.at = (id) => document.querySelector(`[data-id="${id}"]`);
window.slide = (value) => {
  const slider = document.getElementById("threshold");
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
};
window.point = (x, y, on) => on.dispatchEvent(
  new PointerEvent("pointermove", { bubbles: true, clientX: x, clientY: y }));
window.over = (id) => {
  const box = at(id).getBoundingClientRect();
  point(box.x + 2, box.y + 2, at(id));
};
0"""
INTERACTIONS = {
    "all edges": "slide(0)",
    "half of the slider": "slide(500)",
    "few edges": "slide(950)",
    "point at a node": "over('node:{i}')",
    "point at edges": "slide(0); point(500 + {i}, 500, document.getElementById('marks'))",
    "click": "at('node:{i}').dispatchEvent(new MouseEvent('click', {{ bubbles: true }}))",
    "escape": "document.dispatchEvent(new KeyboardEvent('keydown', {{ key: 'Escape' }}))",
    "select": "at('node:{i}').dispatchEvent("
    "new MouseEvent('click', {{ bubbles: true, shiftKey: true }}))",
    "group": "document.getElementById('name').value = 'group {i}', "
    "document.getElementById('grouping').requestSubmit()",
}


def test_large_circuits_answer_within_200_ms(show: Any) -> None:
    page = show(graphs.large(500, 5000))
    page.run(_ACTIONS)
    taken = {}
    for name, action in INTERACTIONS.items():
        # The best of three: the machine has other work.
        times = [page.timed(action.format(i=5 * k)) for k in (1, 2, 3)]
        taken[name] = min(times)
    assert max(taken.values()) < 200, taken
