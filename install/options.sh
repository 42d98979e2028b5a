# The options of the commands for hosts, and what they must be.

readonly MODEL_HOME=/var/lib/moe2-agent/models

# parse_options COMMAND ARGUMENT…: sets COORDINATOR, TOKEN_FILE, CA_FILE, MODELS, NAME, PROFILE, POSTGRESQL, WHEELS,
# PURGE and DRY_RUN.
parse_options() {
  local command=$1
  shift
  COORDINATOR='' TOKEN_FILE='' CA_FILE='' MODELS=() NAME='' PROFILE='' POSTGRESQL=no WHEELS='' PURGE=no
  while (($# > 0)); do
    case $command:$1 in
      agent:--coordinator)
        COORDINATOR=$(value_of "$@")
        shift
        ;;
      agent:--token-file)
        TOKEN_FILE=$(path_of "$@")
        shift
        ;;
      agent:--ca-file)
        CA_FILE=$(path_of "$@")
        shift
        ;;
      agent:--name)
        NAME=$(value_of "$@")
        shift
        ;;
      agent:--profile)
        PROFILE=$(value_of "$@")
        shift
        ;;
      agent:--model)
        # One file or several, up to the next option.
        value_of "$@" >/dev/null
        while (($# > 1)) && [[ $2 != --* ]]; do
          MODELS+=("$(path_of --model "$2")")
          shift
        done
        ;;
      agent:--wheels | coordinator:--wheels | upgrade:--wheels)
        WHEELS=$(path_of "$@")
        shift
        ;;
      coordinator:--postgresql) POSTGRESQL=yes ;;
      uninstall:--purge) PURGE=yes ;;
      agent:--dry-run | coordinator:--dry-run | upgrade:--dry-run | uninstall:--dry-run) DRY_RUN=yes ;;
      *) die "$command does not know $1; see ./install.sh help." ;;
    esac
    shift
  done
  if [[ -n $WHEELS ]]; then
    [[ -d $WHEELS ]] || die "--wheels $WHEELS is no folder."
    WHEELS=$(realpath "$WHEELS")
  fi
}

# value_of --option VALUE…: the value; an option without one is a mistake.
value_of() {
  if (($# < 2)) || [[ -z $2 || $2 == --* ]]; then die "$1 needs a value; see ./install.sh help."; fi
  printf '%s' "$2"
}

# path_of --option PATH…: as value_of; relative paths are the caller's, not the checkout's.
path_of() {
  local path
  path=$(value_of "$@")
  case $path in
    /*) printf '%s' "$path" ;;
    *) printf '%s/%s' "$CALLED_FROM" "$path" ;;
  esac
}

# The agent's options are for its first configuration; later they have no place to go.
check_agent_options() {
  local model
  if [[ -e $ROOT/etc/moe2/agent.toml ]]; then
    if [[ -n $COORDINATOR$CA_FILE$NAME$PROFILE ]] || ((${#MODELS[@]} > 0)); then
      note_warning "/etc/moe2/agent.toml exists and is kept as it is: --coordinator, --ca-file, --model, --name" \
        "and --profile have no effect. Edit it, then: systemctl restart moe2-agent"
      MODELS=()
    fi
  else
    [[ $COORDINATOR =~ ^wss?://[^/]+ ]] || die "name the coordinator: --coordinator ws://HOST:8081 (or wss://…)."
    ((${#MODELS[@]} > 0)) || die "name what to serve: --model FILE.gguf, one or several."
    [[ -n $TOKEN_FILE || -e $ROOT/etc/moe2/agent-token ]] \
      || die "name the coordinator's enrolment token: --token-file FILE; it is /etc/moe2/agent-token over there."
  fi
  for model in "${MODELS[@]}"; do
    [[ -f $model && -r $model ]] || die "--model $model is no file that can be read."
    [[ $(head -c 4 "$model") == GGUF ]] || die "--model $model is no GGUF file."
  done
  if [[ -n $CA_FILE ]]; then
    grep -q -- '-----BEGIN CERTIFICATE-----' "$CA_FILE" 2>/dev/null || die "--ca-file $CA_FILE holds no certificate."
  fi
  if [[ -n $TOKEN_FILE ]]; then
    [[ -f $TOKEN_FILE && -r $TOKEN_FILE ]] || die "--token-file $TOKEN_FILE is no file that can be read."
    [[ -s $TOKEN_FILE ]] || die "--token-file $TOKEN_FILE is empty."
  fi
}

# Where the agent will find a model: the units hide home folders and /tmp, so that a model from there is copied.
model_place() {
  local real
  real=$(realpath "$1")
  case $real in
    /home/* | /root/* | /run/user/* | /tmp/* | /var/tmp/*) printf '%s/%s' "$MODEL_HOME" "${real##*/}" ;;
    *) printf '%s' "$real" ;;
  esac
}
