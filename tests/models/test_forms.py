"""The two forms of a model: the same outputs, the same gradients, the same state."""

import copy

import pytest
import torch

from models.families import ModelSize, build_model
from models.forms import as_built, as_trained, compact
from models.pointwise import matrices_of
from models.repeated import Repeated, stacks_of, unrolled

SIZE = ModelSize("F1", 16, 10, width=1 / 32, group_size=4, stem="small")


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(SIZE)
    for name, parameter in model.named_parameters():
        if "skipinit" in name:
            parameter.data.fill_(0.3)  # at 0, as it begins, a block would do nothing
    return model


@pytest.fixture
def compacted(model: torch.nn.Module) -> torch.nn.Module:
    return compact(copy.deepcopy(model), lambda: unrolled)


@pytest.mark.parametrize(
    ("fewest", "single", "stacked"),
    [(2, (2, 1, 1, 1), {3, 11, 5}), (8, (2, 4, 1, 6), {11}), (99, (2, 4, 12, 6), set())],
)
def test_stages_become_single_blocks_and_a_repeated_one(model, fewest, single, stacked):
    compacted = compact(model, lambda: unrolled, fewest=fewest)
    blocks = [list(stage.children()) for stage in compacted.stages]
    assert tuple(sum(not isinstance(block, Repeated) for block in stage) for stage in blocks) == single
    assert {len(names) for names in stacks_of(compacted).values()} == stacked


def test_kernels_of_one_pixel_are_matrices(compacted):
    matrices = matrices_of(compacted)
    parameters = dict(compacted.named_parameters())
    assert {parameters[name].ndim - (name in stacks_of(compacted)) for name in matrices} == {2}
    others = {name for name, value in parameters.items() if name.endswith("weight")} - matrices
    assert {parameters[name].shape[-1] for name in others if "head" not in name} == {3}


@pytest.mark.parametrize("image_size", [16, 24])  # 24: halved three times it is odd
def test_both_forms_compute_the_same(model, compacted, image_size):
    x = torch.randn(3, 3, image_size, image_size)
    expected, result = model(x), compacted(x)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    for outputs in (expected, result):
        outputs.square().mean().backward()
    gradients = as_built(compacted, {name: p.grad for name, p in compacted.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_state_goes_there_and_back(model, compacted):
    state = model.state_dict()
    back = as_built(compacted, as_trained(compacted, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert as_trained(compacted, state).keys() == compacted.state_dict().keys()
    assert as_built(model, state) == state  # of the first form nothing is changed
    with pytest.raises(KeyError, match=r"stages\.2\.5\.conv2\.weight"):
        as_trained(compacted, {name: value for name, value in state.items() if name != "stages.2.5.conv2.weight"})


def test_evaluation_drops_no_block(model):
    dropping = compact(build_model(SIZE, drop_path_rate=0.5), lambda: unrolled)
    dropping.load_state_dict(as_trained(dropping, model.state_dict()))
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(dropping.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    drawn = dropping.train()(x)
    assert not torch.allclose(drawn, model.train()(x))


def test_dropped_blocks_are_as_many_as_their_rates_say_and_the_rest_is_scaled():
    dropping = compact(build_model(SIZE, drop_path_rate=0.5), lambda: unrolled)
    repeated = dropping.stages[2].repeated
    masks = repeated._masks(torch.zeros(4000, 1, 1, 1))
    assert masks.shape == (11, 4000, 1, 1, 1)
    blocks = [block for stage in build_model(SIZE, drop_path_rate=0.5).stages for block in stage.children()]
    rates = torch.tensor([block.drop_path.drop_prob for block in blocks[7:18]])
    torch.testing.assert_close((masks == 0).float().mean((1, 2, 3, 4)), rates, rtol=0, atol=0.04)
    torch.testing.assert_close(masks.mean((1, 2, 3, 4)), torch.ones(11), rtol=0, atol=0.06)
