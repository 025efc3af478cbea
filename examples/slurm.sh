#!/bin/bash
# A sweep on the nodes of one SLURM job. Submit it from the root of the repository, again to continue:
#
#   sbatch --nodes=4 examples/slurm.sh sweeps/full_grid.yaml
#
# What stands after the script goes to `raymerge sweep`. Options of sbatch go before it and win over the lines below.
#SBATCH --job-name=raymerge
#SBATCH --nodes=2
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
# two minutes before the time limit this script, not what it started, gets SIGTERM
#SBATCH --signal=B:TERM@120

# Change these, or set them before sbatch. All of it has to lie on disks that every node sees.
: "${RAYMERGE_VENV:=$HOME/raymerge-venv}"                     # where raymerge is installed
: "${RAYMERGE_HOME:=${XDG_CACHE_HOME:-$HOME/.cache}/raymerge}" # weights, images, cached merges
: "${RAYMERGE_COMMAND:=raymerge sweep}"
: "${RAYMERGE_TOKENS:=$HOME/.ray}"                            # folder of the job's token
: "${RAYMERGE_HEAD_IP:=$(hostname -I | awk '{print $1}')}"    # of this node, as the other nodes reach it

set -uo pipefail
(($#)) || { echo "usage: sbatch examples/slurm.sh SPEC [options of raymerge sweep]" >&2; exit 2; }
if [ -e "$RAYMERGE_VENV/bin/activate" ]; then
    # shellcheck disable=SC1091
    source "$RAYMERGE_VENV/bin/activate"
fi
export RAYMERGE_HOME

# Two jobs may share a node: each has ten ports, above those of Ray's workers and below the range that Linux hands out
# from. The rest of Ray's ports, its workers' too, are free ones.
first_port=$((20000 + SLURM_JOB_ID % 1200 * 10))
address="$RAYMERGE_HEAD_IP:$first_port"
ray_files="/tmp/ray-$SLURM_JOB_ID" # sockets lie in it, whose paths may have 107 characters
options=(--block --disable-usage-stats --temp-dir="$ray_files")
options+=(--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
# SLURM may give less than the whole machine, and Ray counts all of it; GPUs it counts by CUDA_VISIBLE_DEVICES
[ -n "${SLURM_CPUS_PER_TASK:-}" ] && options+=(--num-cpus="$SLURM_CPUS_PER_TASK")
step=(srun --overlap --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
head_options=(--head --node-ip-address="$RAYMERGE_HEAD_IP" --port="$first_port" --include-dashboard=false)
# with grpcio installed Ray also listens for ray:// on this node; there is no switch for it, only another port
python -c "import grpc" 2>/dev/null && head_options+=(--ray-client-server-port=$((first_port + 1)))

# A token of this job alone, in a file that only you can read: other users and other jobs cannot connect.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$RAYMERGE_TOKENS/slurm-$SLURM_JOB_ID.token"
unset RAY_AUTH_TOKEN RAY_ADDRESS
mkdir -p "$RAYMERGE_TOKENS"
(umask 077 && rm -f "$RAY_AUTH_TOKEN_PATH" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH") || exit 1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
others=$((${#nodes[@]} - 1))
started=() # srun of the head and of the workers
sweep='' stopping='' interrupted=''
on_signal() {
    stopping=1 interrupted=1
    echo "SIGTERM: the sweep stops; what is finished is kept."
    [ -n "$sweep" ] && kill -TERM "$sweep" 2>/dev/null
}
finish() {
    local status=$?
    trap '' TERM INT
    # not `ray stop`, which would end every Ray of yours on the node
    ((${#started[@]})) && kill "${started[@]}" 2>/dev/null && wait "${started[@]}" 2>/dev/null
    rm -f "$RAY_AUTH_TOKEN_PATH"
    case $status in
        0 | 3 | 130) "${step[@]}" --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" rm -rf "$ray_files" ;;
        *) echo "Ray's logs stay in $ray_files/session_latest/logs of each node." >&2 ;;
    esac
    exit "$status"
}
trap finish EXIT
trap on_signal TERM INT

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" ray start "${head_options[@]}" "${options[@]}" &
started+=($!)

# Return when Ray has so many nodes; fail when its head has ended, or after five minutes.
wait_for_nodes() {
    local until=$((SECONDS + 300))
    # the port first: Ray waits for minutes for one that nobody listens at
    until [ -n "$stopping" ] || { (: <"/dev/tcp/$RAYMERGE_HEAD_IP/$first_port") 2>/dev/null && python - "$address" "$1"; } <<'PY'
import sys

import ray

address, wanted = sys.argv[1:]
try:
    ray.init(address, log_to_driver=False, logging_level="CRITICAL")
except (ConnectionError, RuntimeError):
    sys.exit(1)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(wanted))
PY
    do
        kill -0 "${started[0]}" 2>/dev/null || { echo "Ray's head has ended; its output is above." >&2; return 1; }
        ((SECONDS < until)) || return 1
        sleep 1
    done
}

wait_for_nodes 1 || exit 1
if ((others > 0)); then
    names=$(IFS=, && echo "${nodes[*]:1}")
    "${step[@]}" --nodes="$others" --ntasks="$others" --nodelist="$names" ray start --address="$address" "${options[@]}" &
    started+=($!)
    wait_for_nodes "${#nodes[@]}" || echo "Some nodes have not joined yet; the sweep starts on those that have." >&2
fi
[ -n "$stopping" ] && exit 130

# RAYMERGE_COMMAND is split at blanks
$RAYMERGE_COMMAND "$@" --address "$address" &
sweep=$!
[ -n "$stopping" ] && kill -TERM "$sweep"
status=127
while true; do
    interrupted=''
    wait "$sweep" # a signal ends the wait, not the sweep; 127: it has ended and was waited for
    code=$?
    ((code == 127)) || status=$code
    [ -n "$interrupted" ] || break
done
((status == 130)) && echo "Interrupted: submit the same command again, and it continues."
exit "$status"
