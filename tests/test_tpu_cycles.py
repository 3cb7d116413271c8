"""The estimate of what a program costs on a TPU, on a hand-made program; and on the real ones."""

import pytest

from tests.references import tpu_cycles

PROGRAM = """HloModule jit_step, entry_computation_layout={()->f32[8]}

%body (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  ROOT %a = f32[8] fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"10"}
}

%condition (p: f32[8]) -> pred[] {
  %end = s32[] constant(7)
  ROOT %less = pred[] compare(%counter, %end), direction=LT
}

%cheap (p: f32[8]) -> f32[8] {
  ROOT %b = f32[8] fusion(%p), backend_config={"estimated_cycles":"100"}
}

%dear (p: f32[8]) -> f32[8] {
  ROOT %c = f32[8] fusion(%p), backend_config={"estimated_cycles":"300"}
}

ENTRY %main () -> f32[8] {
  %start = f32[8] fusion(), backend_config={"estimated_cycles":"1"}
  %loop = f32[8] while(%start), condition=%condition, body=%body
  %choice = f32[8] conditional(%loop), branch_computations={%cheap, %dear}
  %few = f32[4,8]{1,0} gather(%choice, %loop), offset_dims={1}
  ROOT %many = bf16[16,224,224,3]{3,2,1,0} gather(%choice, %loop), offset_dims={1}
}
"""


def test_loops_count_each_turn_and_choices_their_mean() -> None:
    assert tpu_cycles.estimated_cycles(PROGRAM) == 1 + 7 * 10 + (100 + 300) // 2


def test_only_gathers_of_pixels_are_found() -> None:
    (found,) = tpu_cycles.pixel_gathers(PROGRAM)
    assert "%many" in found


@pytest.mark.tpu
def test_all_augmentation_costs_less_than_a_tenth_of_a_resnet50_step() -> None:
    pytest.importorskip("libtpu", reason='needs the compiler: pip install -e ".[tpu]"')
    mesh = tpu_cycles.v5e_mesh()
    programs = {
        name: tpu_cycles.train_step_hlo(mesh, tpu_cycles.PIPELINES[name])
        for name in ("Normalize alone", "all of them")
    }
    bare, whole = map(tpu_cycles.estimated_cycles, programs.values())
    assert whole < 1.1 * bare
    assert not tpu_cycles.pixel_gathers(programs["all of them"])
