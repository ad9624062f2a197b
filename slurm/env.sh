# What a node needs before Python starts; named in hydra.launcher.setup or sourced by slurm/array.sbatch.
# Copy it and adapt: everything here is an example that does nothing where it does not apply.
# shellcheck shell=bash

if command -v module >/dev/null; then
  : # module load cuda/13 python/3.12
fi
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

: "${SQ_DATA:=}"                                            # data and weights, on a file system that nodes share
export SQ_DATA
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"          # not the node's cores: the task's
export WANDB_MODE="${WANDB_MODE:-offline}"                  # nodes often have no way out; python -m sq track NAME uploads later
export MPLCONFIGDIR="${MPLCONFIGDIR:-${TMPDIR:-/tmp}/mpl-$(id -u)}"  # home folders may be read-only on nodes
