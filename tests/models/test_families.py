"""A family is found by name; a wrong name is met with the right one."""

import subprocess
import sys

import pytest

from models.families import ModelSize, build_model, check_model, variants


def test_variants_of_a_family_in_order_of_cost() -> None:
    assert variants("nfnet") == ("F0", "F1", "F2", "F3", "F3+", "F4", "F5", "F6", "F7", "F7+")


def test_a_model_is_built_by_family_and_variant() -> None:
    model = build_model(ModelSize("F1", 16, classes=7, width=1 / 16, group_size=8, stem="small"))
    assert model.head.fc.out_features == 7
    assert sum(name.endswith("skipinit_gain") for name, _ in model.named_parameters()) == 2 + 4 + 12 + 6


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^unknown family 'nfnets'; did you mean 'nfnet'\? \(allowed: nfnet\)$"):
        variants("nfnets")
    with pytest.raises(ValueError, match=r"^unknown family 'vit' \(allowed: nfnet\)$"):
        build_model(ModelSize("F0", 32, classes=10, family="vit"))
    with pytest.raises(ValueError, match=r"^unknown NFNet variant 'F3\+\+'; did you mean 'F3\+'\? \(allowed: F0, "):
        build_model(ModelSize("F3++", 32, classes=10))


def test_a_check_refuses_what_building_would_without_importing_torch() -> None:
    with pytest.raises(ValueError, match="image_size 16 is too small"):
        check_model(ModelSize("F0", 16, classes=10))
    code = (
        "import sys; from models.families import ModelSize, check_model;"
        "check_model(ModelSize('F0', 64, classes=10));"
        "import models.costs; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
