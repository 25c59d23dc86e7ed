"""The contract of every granularity, and what each one computes for known input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric import EdgeIndex

from recsys.config import SECTIONS, GranularitiesConfig, section_class
from recsys.data.attributes import Field, ProfileEncoding, Profiles, encode_table
from recsys.data.batches import Batch, every_position, last_position
from recsys.data.histories import Histories, Queries
from recsys.errors import ConfigError
from recsys.granularities import granularity_class
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.behaviour.text_vectors import UserTextVectors
from recsys.granularities.knowledge.triples import Triples
from recsys.granularities.media.model import MediaVectors
from recsys.granularities.place.coordinates import Places
from recsys.granularities.social.friend_graph import Friends

WIDTH, ITEMS, USERS, TEXT = 8, 12, 5, 6
DAY = 86_400
PROFILE = ProfileEncoding(
    (
        Field("age", "number", edges=(30.0,), center=30.0, scale=10.0),
        Field("city", "category", 1, ("rome", "oslo")),
    ),
    (Field("genres", "list", 2, ("drama", "crime")),),
)
SIZES = ModelSizes(
    *(WIDTH, 6, USERS, ITEMS, 2, TEXT),
    ordered=True,
    timed=True,
    inputs={
        "profile": PROFILE.to_json(),
        "knowledge": {"entities": 10, "relations": 2},
        "user_text": TEXT,
        "media": [["audio", 3], ["image", 4]],
        "place": [["lat", "lon"], ["price"]],
    },
)
HISTORIES = [[1, 2, 3, 4], [5], [], [2, 7, 7, 9, 1, 3], [11, 0]]
CASES = [
    ("behaviour", {"input": "text"}),
    ("behaviour", {"input": "item"}),
    ("behaviour", {"input": "both"}),
    ("behaviour", {"input": "user_text"}),
    ("evolution", {"cell": "attention"}),
    ("evolution", {"cell": "gru"}),
    ("evolution", {"cell": "lstm"}),
    ("evolution", {"cell": "gru", "states": "formula", "time_gaps": True}),
    ("evolution", {"cell": "lstm", "states": "parallel", "sweeps": 3}),
    ("evolution", {"cell": "attention", "states": "parallel", "positions": "absolute"}),
    ("evolution", {"cell": "hstu"}),
    ("evolution", {"cell": "hstu", "layers": 2, "positions": "relative"}),
    ("evolution", {"cell": "hstu", "states": "parallel", "positions": "absolute"}),
    ("collaborative", {}),
    ("collaborative", {"user_embedding": True}),
    ("social", {"conv": "sage", "layers": 2}),
    ("social", {"conv": "gat"}),
    ("social", {"conv": "light"}),
    ("knowledge", {}),
    ("knowledge", {"conv": "rgcn", "heads": 2, "refine": False}),
    ("stratum", {"num_strata": 3}),
    ("stratum", {"num_strata": 2, "method": "hierarchical", "input": "item"}),
    ("profile", {"layers": 0}),
    ("profile", {"layers": 2, "rank": 3}),
    ("media", {}),
    ("media", {"refine": False, "whiten": 2, "heads": 2}),
    ("item_cf", {"rank": 8, "text_weight": 1.0}),
    ("item_cf", {"rank": 8, "text_weight": 1.0, "event_weights": "rank"}),
    ("knowledge", {"fit": "counts"}),
    ("knowledge", {"fit": "counts", "min_degree": 1, "smoothing": 3.0}),
    ("profile", {"fit": "counts"}),
    ("profile", {"fit": "counts", "crosses": [["age", "city"], ["city"]]}),
    ("user_cf", {"rank": 8}),
    ("user_cf", {"rank": 8, "neighbours": 2, "power": 0.0, "popularity_power": 0.5}),
    ("popularity", {}),
    ("popularity", {"counts": "all", "as_of": "last"}),
    ("item_cf", {"form": "neighbours", "recency": 1.0}),
    ("item_knn", {"recency": 1.0, "half_life": 2.0}),
    ("item_knn", {"shrinkage": 0.0, "itself": True}),
    ("als", {"factors": 4}),
    ("content", {"recency": 1.0, "half_life": 2.0}),
    ("place", {"recency": 1.0}),
    ("moment", {}),
    ("social", {"fit": "counts", "half_life": "none"}),
    ("social_cf", {"rank": 12, "max_friends": 2}),
    ("repeat", {}),
    ("frequency", {"half_life": 2.0}),
]
ALWAYS_THERE = {"popularity", "moment"}  # they do not depend on the user


def make(name: str, **options: object) -> Granularity:
    torch.manual_seed(0)
    section = type(getattr(GranularitiesConfig(), name))(enabled=True, **options)
    return granularity_class(name, section)(
        section, replace(SIZES, ordered="user_embedding" not in options)
    ).eval()


@pytest.fixture
def graphs() -> Graphs:
    pairs = sorted({(user, item) for user, items in enumerate(HISTORIES) for item in items})
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    src, dst = torch.tensor([0, 1, 1, 3]), torch.tensor([1, 0, 3, 1])
    people = pa.table(
        {"age": [20.0, 45.0, None, 30.0, None], "city": ["rome", None, "atlantis", "oslo", "oslo"]}
    )
    works = pa.table({"genres": [["drama"], ["crime", "drama"], None, *[["crime"]] * (ITEMS - 3)]})
    profiles = Profiles(encode_table(people, PROFILE.users), encode_table(works, PROFILE.items))
    heads, relations, tails = torch.tensor(
        [(0, 0, 7), (1, 0, 7), (7, 1, 2), (2, 1, 8), (3, 0, 8), (3, 1, 0), (4, 0, 9)]
    ).T
    # items 3 and 4 are one entity; entity 9 has item 5 only
    entities = torch.tensor([0, 1, 2, 3, 3, 4, -1, -1, -1, -1, -1, -1])
    triples = Triples(10, 2, heads, relations, tails, entities)
    texts = torch.randn(4, TEXT, generator=torch.Generator().manual_seed(2)).half()
    whole = torch.tensor([0, 1, -1, 2, 3])  # user 2 has no text
    user_texts = UserTextVectors(texts, whole, torch.zeros(TEXT), torch.ones(TEXT))
    audio, image = (
        torch.randn(ITEMS, width, generator=torch.Generator().manual_seed(width)).half()
        for width in (3, 4)
    )
    audio[::2], image[3:7] = 0, 0  # items 4 and 6 have no media
    media = MediaVectors((audio, image))
    friends = Friends(src, dst, torch.ones(4))
    points = np.random.default_rng(0).random((ITEMS, 2))
    places = Places(points, np.linspace(0, 1, ITEMS)[:, None])
    side = {
        "profile": profiles,
        "knowledge": triples,
        "user_text": user_texts,
        "media": media,
        "friends": friends,
    }
    side["place"] = places
    return Graphs(USERS, ITEMS, users, items, inputs=side, histories=histories([0, 1, 2, 3, 4]))


def view(module: Granularity, graphs: Graphs) -> tuple[ItemView, State]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(ITEMS, WIDTH, generator=generator).requires_grad_()
    text = torch.randn(ITEMS, TEXT, generator=generator)
    text[5] = 0  # an item without text
    items = ItemView(module.refine_items(base, graphs), text)
    if module.refit_due(0):
        module.refit(graphs, items, 0)
        items = ItemView(module.refine_items(base, graphs), text)
    return items, module.state(items, graphs)


def histories(users: list[int]) -> Histories:
    made = Histories.of_items([HISTORIES[user] for user in users], users)
    position_E = np.arange(len(made.items_E)) - np.repeat(made.offsets_U1[:-1], made.lengths_U)
    return replace(made, times_E=position_E.astype(np.int64) * DAY + 1)


def batch_of(users: list[int]) -> Batch:
    asked = histories(users)
    nothing = (np.zeros(len(asked) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    at = np.full(len(asked), 30 * DAY)
    return last_position(Queries(asked, *nothing, asked_at_B=at), 6)


def answers(
    module: Granularity, batch: Batch, items: ItemView, state: State
) -> tuple[torch.Tensor, torch.Tensor]:
    """z and where it is present; for a sparse granularity, its additions to all items."""
    if not module.sparse:
        z, present = module(batch, items, state)
        return z, present
    scores = module.boost(batch, items, state)
    return scores.add_to(torch.zeros(len(batch), ITEMS)), scores.present(len(batch))


@pytest.mark.parametrize(("name", "options"), CASES)
class TestContract:
    def test_shapes_are_correct_and_absent_users_are_masked(
        self, name: str, options: dict[str, object], graphs: Graphs
    ) -> None:
        module = make(name, **options)
        items, state = view(module, graphs)
        z, present = answers(module, batch_of([0, 1, 2, 3, 4]), items, state)
        own = (
            module.own_items(state).shape[1] if module.closed_form and not module.sparse else WIDTH
        )
        width = ITEMS if module.sparse else own
        assert z.shape == (5, width) and present.shape == (5,) and present.dtype == torch.bool
        has_nothing = name not in ALWAYS_THERE
        assert present.any() and present[2] != has_nothing, (
            "user 2 has no events, friends or known attributes"
        )
        assert torch.equal(z[~present], torch.zeros_like(z[~present]))
        assert (z[present].abs().sum(1) > 0).all()

    def test_gradients_are_finite_also_for_absent_users(
        self, name: str, options: dict[str, object], graphs: Graphs
    ) -> None:
        module = make(name, **options)
        items, state = view(module, graphs)
        z, _ = answers(module, batch_of([2, 0, 1]), items, state)
        (z.square().sum() + items.vectors_SD.sum()).backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)

    def test_row_order_does_not_matter(
        self, name: str, options: dict[str, object], graphs: Graphs
    ) -> None:
        module = make(name, **options)
        items, state = view(module, graphs)
        straight, _ = answers(module, batch_of([0, 1, 2, 3, 4]), items, state)
        shuffled, _ = answers(module, batch_of([3, 0, 4, 2, 1]), items, state)
        torch.testing.assert_close(shuffled, straight[[3, 0, 4, 2, 1]])

    def test_every_position_sees_its_past_only(
        self, name: str, options: dict[str, object], graphs: Graphs
    ) -> None:
        if "user_embedding" in options:
            pytest.skip("user embeddings are for unordered data, which has no positions")
        module = make(name, **options)
        if module.sparse:
            pytest.skip("a sparse granularity only scores last positions")
        items, state = view(module, graphs)
        whole = histories([3, 0])
        trained = every_position(whole, 6, np.array([0, 1]))
        z, present = answers(module, trained, items, state)
        # needs shared triples, which not all items have
        is_counted = options.get("fit") == "counts" and name == "knowledge"
        assert len(z) == 5 + 3 and (present.any() if is_counted else present.all())
        prefixes = [[2], [2, 7], [2, 7, 7], [2, 7, 7, 9], [2, 7, 7, 9, 1]]
        for query, prefix in enumerate(prefixes):
            asked = Histories.of_items([prefix], [3])
            asked = replace(asked, times_E=whole.times_E[: len(prefix)])
            nothing = (np.zeros(2, np.int64), np.zeros(0, np.int32))
            asked_at_B = whole.times_E[[len(prefix)]]
            queries = Queries(asked, *nothing, asked_at_B=asked_at_B)
            alone, _ = answers(module, last_position(queries, 6), items, state)
            torch.testing.assert_close(z[query], alone[0], rtol=1e-4, atol=1e-5)
        few = torch.tensor([1, 6])  # one query per row, not at its end
        parts = {
            name: getattr(trained, name)[few]
            for name in ("rows_B", "seen_B", "asked_at_B", "asked_BC")
        }
        one_each, _ = answers(module, replace(trained, **parts), items, state)
        torch.testing.assert_close(one_each, z[few], rtol=1e-4, atol=1e-5)

    def test_unknown_user_is_served_from_state(
        self, name: str, options: dict[str, object], graphs: Graphs
    ) -> None:
        module = make(name, **options)
        items, state = view(module, graphs)
        new_user = replace(batch_of([0]), users_U=torch.tensor([-1]))
        _, present = answers(module, new_user, items, state)
        needs_the_user = (
            name in ("social", "social_cf", "profile") or options.get("input") == "user_text"
        )
        assert bool(present[0]) != needs_the_user, "a history is sufficient for all others"

    def test_a_query_makes_no_tensor_of_all_items(
        self, name: str, options: dict[str, object], graphs: Graphs
    ) -> None:
        """Else the time of a request would grow with the catalogue before anything is scored."""
        module = make(name, **options)
        items, state = view(module, graphs)
        with torch.no_grad(), OverItems() as made:
            (module.boost if module.sparse else module)(batch_of([1]), items, state)
        assert made.names == []


class OverItems(TorchDispatchMode):
    """Names of the operations whose result is no view and has a row or column for each item."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        self.names += [
            str(func)
            for tensor in _tensors(result)
            if ITEMS in tensor.shape and _storage(tensor) not in given
        ]
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", ["collaborative", "social", "knowledge"])
def test_graphs_are_convolved_once_per_step(
    name: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view convolves; batches of any size read its result."""
    products = []
    matmul = EdgeIndex.matmul

    def counted(self: EdgeIndex, *given: object, **named: object) -> object:
        products.append(self.shape)
        return matmul(self, *given, **named)

    monkeypatch.setattr(EdgeIndex, "matmul", counted)
    module = make(name)
    items, state = view(module, graphs)
    made = len(products)
    assert made > 0
    for users in ([1], [0, 1, 2, 3, 4, 0, 1]):
        module(batch_of(users), items, state)
        assert len(products) == made


def test_collaborative_fold_in_equals_light_graph_convolution(graphs: Graphs) -> None:
    """The fold-in of a training user's history is LightGCN's user vector, by dense matrices with
    zero user rows.
    """
    module = make("collaborative", layers=4)
    items, state = view(module, graphs)
    z, _ = module(batch_of([0, 1, 4]), items, state)
    adjacency = torch.zeros(USERS, ITEMS)
    adjacency[graphs.users_E, graphs.items_E] = 1
    scaled = (
        adjacency
        / (adjacency.sum(1, keepdim=True).clamp(min=1) * adjacency.sum(0).clamp(min=1)).sqrt()
    )
    generator = torch.Generator().manual_seed(1)
    users, layer = torch.zeros(USERS, WIDTH), torch.randn(ITEMS, WIDTH, generator=generator)
    total_users, total_items = users, layer
    for _ in range(4):
        users, layer = scaled @ layer, scaled.T @ users
        total_users, total_items = total_users + users, total_items + layer
    torch.testing.assert_close(items.vectors_SD, total_items / 5)
    torch.testing.assert_close(z, (total_users / 5)[[0, 1, 4]])


def test_social_is_the_mean_of_the_friends(graphs: Graphs) -> None:
    """Light convolution: the mean of the friends' mean item vectors, with the output projection."""
    module = make("social", conv="light", dropout=0.0)
    items, state = view(module, graphs)
    means = torch.stack(
        [
            items.vectors_SD[sorted(set(row))].mean(0) if row else torch.zeros(WIDTH)
            for row in HISTORIES
        ]
    )
    z, _ = module(batch_of([0, 1]), items, state)
    expected = torch.stack([means[1], (means[0] + means[3]) / 2])
    torch.testing.assert_close(z, module.output(expected))  # type: ignore[operator]


@pytest.mark.parametrize("conv", ["light", "sage"])
def test_social_without_a_vector_for_each_edge_equals_the_convolution_of_pyg(
    graphs: Graphs, conv: str
) -> None:
    module = make("social", conv=conv, dropout=0.0)
    weight_F = torch.tensor([2.0, 0.5, 3.0, 1.0])
    friends = replace(graphs["friends"], weight_F=weight_F)
    is_active_V = torch.tensor([True, True, True, False, True])
    features_VD = torch.randn(len(is_active_V), WIDTH, requires_grad=True)
    found_VD = module._convolve(module.convs[0], features_VD, friends, is_active_V)  # type: ignore[operator, index]
    kept_F = is_active_V[friends.src_F]
    edges_2F = torch.stack([friends.src_F[kept_F], friends.dst_F[kept_F]])
    weights = {"edge_weight": weight_F[kept_F]} if conv == "light" else {}
    expected_VD = module.convs[0](features_VD, edges_2F, **weights)  # type: ignore[index, operator]
    torch.testing.assert_close(found_VD, expected_VD)
    (grad_VD,) = torch.autograd.grad(found_VD.square().sum(), features_VD, retain_graph=True)
    (expected_grad_VD,) = torch.autograd.grad(expected_VD.square().sum(), features_VD)
    torch.testing.assert_close(grad_VD, expected_grad_VD)


def test_light_knowledge_equals_the_result_by_hand(graphs: Graphs) -> None:
    """One hop: the mean over kinds of edge of the mean of their other ends; kind 2r ends in tails
    of relation r, kind 2r + 1 in heads.
    """
    module = make("knowledge", layers=1, refine=True)
    assert "knowledge" in graphs.inputs
    base = torch.randn(ITEMS, WIDTH)
    with torch.no_grad():
        weights = module.graph.relations[0].weight_RD.normal_()  # type: ignore[union-attr, index, operator]
    own = module.graph.entities.weight  # type: ignore[union-attr]
    added = module.refine_items(base, graphs) - base
    torch.testing.assert_close(
        added[0], (own[7] * weights[1] + (base[3] + base[4]) / 2 * weights[2]) / 2
    )
    torch.testing.assert_close(added[1], own[7] * weights[1])
    torch.testing.assert_close(added[2], (own[7] * weights[2] + own[8] * weights[3]) / 2)
    torch.testing.assert_close(added[3], (own[8] * weights[1] + base[0] * weights[3]) / 2)
    torch.testing.assert_close(added[4], added[3], msg="two items at one entity")
    assert not added[5:].any(), "item 5 shares no triples, the others have no entity"


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_relational_convolution_is_that_of_torch_geometric(graphs: Graphs, layers: int) -> None:
    """RGCNConv sums over the kinds of edge that end in an entity where we take the mean."""
    from torch_geometric.nn import RGCNConv

    triples = graphs["knowledge"]
    assert triples is not None
    module = make("knowledge", conv="rgcn", layers=layers, min_degree=1, bases=3)
    edges = torch.cat(
        [
            torch.stack([triples.head_F, triples.tail_F]),
            torch.stack([triples.tail_F, triples.head_F]),
        ],
        dim=1,
    )
    kinds = torch.cat([2 * triples.relation_F, 2 * triples.relation_F + 1])
    several = torch.stack(
        [torch.bincount(edges[1][kinds == kind], minlength=10) > 0 for kind in range(4)]
    ).sum(0)
    base = torch.randn(ITEMS, WIDTH)
    hidden = module.graph.entities.weight.clone()  # type: ignore[union-attr, operator]
    hidden[:5] = torch.stack([base[0], base[1], base[2], (base[3] + base[4]) / 2, base[5]])
    hidden[5:7] = 0  # entities without triples
    start = hidden
    for relations in module.graph.relations:  # type: ignore[union-attr]
        conv = RGCNConv(WIDTH, WIDTH, 4, num_bases=3, root_weight=False, bias=False)
        conv.comp.data = relations.share_RB.data
        conv.weight.data = (
            relations.shared.weight.data.unflatten(0, (3, WIDTH)).transpose(1, 2).contiguous()
        )
        hidden = hidden + torch.relu(conv(hidden, edges, kinds) / several.clamp(min=1)[:, None])
    added = module.refine_items(base, graphs) - base
    torch.testing.assert_close(added[:6], (hidden - start)[[0, 1, 2, 3, 3, 4]])
    assert not added[6:].any()


def test_user_without_triples_is_absent_and_changes_nothing(graphs: Graphs) -> None:
    module = make("knowledge")
    items, state = view(module, graphs)
    z, present = module(batch_of([1, 4, 3]), items, state)
    assert present.tolist() == [False, True, True] and not z[0].any()
    facts_only = replace(graphs, users_E=graphs.users_E[:0], items_E=graphs.items_E[:0])
    torch.testing.assert_close(module(batch_of([1, 4, 3]), *view(module, facts_only))[0], z)


def test_knowledge_serves_without_the_graph(graphs: Graphs) -> None:
    module = make("knowledge")
    items, state = view(module, graphs)
    section = GranularitiesConfig().knowledge.model_copy(update={"enabled": True})
    served = granularity_class("knowledge").for_serving(section, SIZES).eval()
    weights = {
        name: weight for name, weight in module.state_dict().items() if name in served.state_dict()
    }
    served.load_state_dict(weights)
    assert not any(name.startswith("graph") for name in weights)
    torch.testing.assert_close(
        served(batch_of([0, 3]), items, state), module(batch_of([0, 3]), items, state)
    )


def test_knowledge_refuses_data_without_triples() -> None:
    with pytest.raises(
        ConfigError, match=r"needs triples about items.*data\.knowledge\.item_columns"
    ):
        granularity_class("knowledge")(
            GranularitiesConfig().knowledge,
            replace(SIZES, inputs={"knowledge": {"entities": 10, "relations": 0}}),
        )


def test_behaviour_weights_the_newest_event_most_if_decay_is_large(graphs: Graphs) -> None:
    module = make("behaviour", input="item")
    with torch.no_grad():
        module.lag_decay_H.fill_(50.0)  # type: ignore[union-attr, operator]
    items, state = view(module, graphs)
    z, _ = module(batch_of([0]), items, state)
    newest = module.norm(module.value(items.vectors_SD[4]))  # type: ignore[operator]
    torch.testing.assert_close(z[0], newest, rtol=1e-3, atol=1e-4)


def test_evolution_refuses_data_without_order() -> None:
    with pytest.raises(ConfigError, match="needs ordered events"):
        granularity_class("evolution")(
            GranularitiesConfig().evolution, replace(SIZES, ordered=False)
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("behaviour", {}),
        ("evolution", {}),
        ("evolution", {"cell": "hstu"}),
        ("social", {"conv": "gat"}),
        ("knowledge", {}),
    ],
)
def test_heads_must_divide_the_width(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{name}.heads 3 does not divide model.width 8"):
        make(name, heads=3, **options)


def test_user_embedding_is_refused_on_ordered_data() -> None:
    section = GranularitiesConfig().collaborative.model_copy(update={"user_embedding": True})
    with pytest.raises(ConfigError, match="would leak later events"):
        granularity_class("collaborative")(section, SIZES)


def test_unknown_granularity_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="als, behaviour, collaborative, content, evolution"):
        granularity_class("behavior")
    assert list(GranularitiesConfig.model_fields) == list(SECTIONS), (
        "the table has the order of the keys"
    )


def test_section_and_module_agree() -> None:
    for name, options in CASES:
        section = section_class(name)(enabled=True, **options)
        assert granularity_class(name, section).closed_form == section.is_closed_form, name
    assert {name for name, _ in CASES} == set(SECTIONS)
