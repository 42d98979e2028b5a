# The commands for hosts: coordinator, agent, upgrade.

readonly CONFIG_DIR=$ROOT/etc/moe2
readonly TOKEN=$CONFIG_DIR/agent-token
# In an image the files that a configuration names are not where they will be.
CHECK_OPTIONS=()
if [[ -n $ROOT ]]; then CHECK_OPTIONS=(--without-files); fi
# LoadCredential came with this systemd.
readonly CREDENTIALS_SINCE=247
# Whose the agent's files are. Below another root there may be no such user.
OWNER=(--owner moe2-agent --group moe2)
[[ -z $ROOT ]] || OWNER=()

# begin COMMAND ARGUMENT…: what all of them do first.
begin() {
  COMMAND=$1
  parse_options "$@"
  umask 022
  SYSTEM_PYTHON=yes
  if ! is_dry && [[ -z $ROOT ]]; then
    [[ $EUID -eq 0 ]] || die "$COMMAND changes the system: run it with sudo, or with --dry-run to see what it would do."
    [[ -d /run/systemd/system ]] || die "systemd does not run here; ./install.sh demo needs none."
  fi
  detect_host
  case $HOST_ARCH in
    x86_64 | aarch64) ;;
    *) die "this is $HOST_ARCH; moe2 is for x86_64 and aarch64." ;;
  esac
  describe_host
  if [[ -n $WHEELS ]]; then PIP_SOURCES=(--no-index --find-links "$WHEELS"); fi
  if [[ $COMMAND != uninstall ]]; then plan_python; fi
}

# Opens the log, and keeps others out while this one works.
begin_changes() {
  if is_dry; then return; fi
  install -d -m 0755 "$HOME_DIR"
  exec 9>"$HOME_DIR/.lock"
  flock --nonblock 9 || die "another install.sh is at work on this host."
  LOG=$HOME_DIR/install.log
  : >"$LOG"
}

install_coordinator() {
  local roles
  begin coordinator "$@"
  begin_changes
  mapfile -t roles < <(installed_roles coordinator)
  ensure_release "${roles[@]}"
  ensure_users
  ensure_new_token
  ensure_configuration coordinator examples/coordinator.toml --set "agents.token_file=/etc/moe2/agent-token"
  deploy "${roles[@]}"
  note_next "moe2-coordinator status        # the fleet; needs root or the group moe2"
  note_next "moe2-coordinator keys create NAME   # a key for an app, before the API listens on more than loopback"
  note_next "To add an agent on another host: let the coordinator listen there with TLS ([agents] and [agents.tls] in" \
    "/etc/moe2/coordinator.toml; docs/operations.md), bring /etc/moe2/agent-token over in a safe way (scp), and run" \
    "there: sudo ./install.sh agent --coordinator wss://$(uname -n):8081 --ca-file ca.pem --token-file agent-token" \
    "--model FILE.gguf"
  note_next "On this host: sudo ./install.sh agent --coordinator ws://127.0.0.1:8081 --model FILE.gguf"
  summarize
}

install_agent() {
  local roles
  begin agent "$@"
  check_agent_options
  begin_changes
  mapfile -t roles < <(installed_roles agent)
  ensure_release "${roles[@]}"
  ensure_users
  ensure_given_token
  ensure_agent_configuration
  deploy "${roles[@]}"
  note_next "moe2-agent status              # the models, the link, the sensors; needs root or the group moe2"
  note_next "moe2-agent doctor              # which power sensors can be read, and what to do about the others"
  note_next "journalctl -u moe2-agent -f    # its log"
  summarize
}

upgrade() {
  local roles
  begin upgrade "$@"
  mapfile -t roles < <(installed_roles)
  ((${#roles[@]} > 0)) || die "nothing is installed here; begin with ./install.sh coordinator or ./install.sh agent."
  begin_changes
  ensure_release "${roles[@]}"
  ensure_users
  deploy "${roles[@]}"
  if [[ $BACKEND != none && -n $(gpu_layers) ]] && ! grep -q '^gpu_layers' "$CONFIG_DIR/agent.toml" 2>/dev/null; then
    note_next "llama.cpp can use the GPU now: set gpu_layers = -1 for the models in /etc/moe2/agent.toml, then: sudo" \
      "systemctl restart moe2-agent"
  fi
  summarize
}

# --- Configuration: written once, never changed -----------------------------------------------------------------------

# ensure_configuration ROLE EXAMPLE [ARGUMENT…]: arguments are configuration.py's.
ensure_configuration() {
  local target=$CONFIG_DIR/$1.toml role=$1
  shift
  if [[ -e $target ]]; then
    kept "/etc/moe2/$role.toml exists and stays as it is"
    return
  fi
  step "Writing /etc/moe2/$role.toml" write_configuration "$role" "$target" "$@"
  note_done "/etc/moe2/$role.toml; every setting is in it, most as comments"
}

# One that the daemon refuses, because an option was mistaken, is not kept: it would never be overwritten.
write_configuration() {
  local role=$1 target=$2 text
  shift 2
  text=$("$PYTHON" install/configuration.py "$@")
  write_text "$target.draft" 0644 "$text"
  if ! "$RELEASE/bin/moe2-$role" check-config "${CHECK_OPTIONS[@]}" --config "$target.draft"; then
    rm "$target.draft"
    return 1
  fi
  mv "$target.draft" "$target"
}

ensure_agent_configuration() {
  local arguments=(examples/agent.toml) model place layers
  if [[ ! -e $CONFIG_DIR/agent.toml ]]; then
    arguments+=(--set "coordinator.url=$COORDINATOR" --set "coordinator.token_file=/etc/moe2/agent-token")
    if [[ -n $CA_FILE ]]; then
      step "Copying the coordinator's CA to /etc/moe2/ca.pem" install -D -m 0644 "$CA_FILE" "$CONFIG_DIR/ca.pem"
      arguments+=(--set "coordinator.ca_file=/etc/moe2/ca.pem")
    fi
    [[ -z $NAME ]] || arguments+=(--set "agent.name=$NAME")
    [[ -z $PROFILE ]] || arguments+=(--set "sensors.profile=$PROFILE")
    for model in "${MODELS[@]}"; do
      place=$(model_place "$model")
      if [[ $place == "$(realpath "$model")" ]]; then check_readable "$place"; else copy_model "$model" "$place"; fi
      arguments+=(--model "$place")
    done
    layers=$(gpu_layers)
    [[ -z $layers ]] || arguments+=("--gpu-layers=$layers")
  fi
  ensure_configuration agent "${arguments[@]}"
}

# A model that stays where it is must be readable there for the agent's user.
check_readable() {
  if is_dry || [[ -n $ROOT ]] || runuser -u moe2-agent -- test -r "$1"; then return; fi
  note_warning "The user moe2-agent cannot read $1: give it the right (chmod o+r, and o+x on its folders), then:" \
    "sudo systemctl restart moe2-agent"
}

# copy_model FILE PLACE: for the agent alone, as the rest of its state.
copy_model() {
  if [[ -e $ROOT$2 ]]; then
    kept "$2 exists"
    return
  fi
  step "Making the agent's state folder" make_state_folder
  step "Copying ${1##*/} to $MODEL_HOME: the unit does not see $(dirname "$(realpath "$1")")" put_model "$1" "$ROOT$2"
  note_done "$2, a copy of $1"
}

# as_agent COMMAND ARGUMENT…: with the rights of the agent's user. All that is made within a folder which that user owns
# is made so: it may have put a link there, and root would follow it and give any file of the system away.
as_agent() {
  if [[ -n $ROOT ]]; then "$@"; else runuser -u moe2-agent -g moe2 -- "$@"; fi
}

# The state folder itself lies in a folder of root's, where nobody else can put a link.
make_state_folder() {
  local folder=$ROOT${MODEL_HOME%/*}
  if [[ ! -d $folder || -L $folder ]]; then install -d -m 0700 "${OWNER[@]}" "$folder"; fi
  as_agent mkdir -p -m 0700 "$ROOT$MODEL_HOME"
}

# put_model FILE PLACE: complete or not at all. The agent's user may not be able to read FILE, so root opens it.
put_model() {
  # shellcheck disable=SC2016 # The inner shell's.
  as_agent sh -c 'umask 077 && cat >"$1.new" && mv -fT "$1.new" "$1"' sh "$2" <"$1"
}

# --- The enrolment token ----------------------------------------------------------------------------------------------

# root's alone, because systemd hands it to the daemons; before LoadCredential, their group's.
set_token_mode() {
  if [[ -n $SYSTEMD_VERSION && $SYSTEMD_VERSION -lt $CREDENTIALS_SINCE ]]; then
    chgrp moe2 "$TOKEN"
    chmod 0640 "$TOKEN"
  fi
}

ensure_new_token() {
  if [[ -e $TOKEN ]]; then
    kept "/etc/moe2/agent-token exists and stays as it is"
    return
  fi
  step "Making the enrolment token /etc/moe2/agent-token" make_token
  note_done "/etc/moe2/agent-token, a new enrolment token that only root can read"
}

make_token() {
  # 32 random bytes, as text.
  write_text "$TOKEN" 0600 "$(head -c 32 /dev/urandom | base64 -w 0 | tr '+/' '-_' | tr -d '=')"
  set_token_mode
}

ensure_given_token() {
  # An agent that is enrolled needs none.
  if [[ ! -e $TOKEN && -z $TOKEN_FILE ]]; then return; fi
  if [[ -e $TOKEN ]]; then
    if [[ -n $TOKEN_FILE ]] && ! cmp -s "$TOKEN_FILE" "$TOKEN"; then
      note_warning "/etc/moe2/agent-token exists and is another than $TOKEN_FILE; it is kept. To replace it:" \
        "sudo install -m 0600 $TOKEN_FILE /etc/moe2/agent-token && sudo systemctl restart moe2-agent"
    else
      kept "/etc/moe2/agent-token exists and stays as it is"
    fi
    return
  fi
  step "Copying the enrolment token to /etc/moe2/agent-token" take_token
  note_done "/etc/moe2/agent-token, which only root can read; $TOKEN_FILE can be deleted"
}

take_token() {
  write_text "$TOKEN" 0600 "$(cat "$TOKEN_FILE")"
  set_token_mode
}
