# What the scenarios of both rigs share. A rig defines: `setup`, `channels KIND DEBOUNCE WIDTH`
# (the channel tables of a configuration), `train N` (pulses on every channel), `phase_N`.

state=/data/state
# Pulses that are lost at most between two saves; the time between saves is out of reach.
save_pulses=10

# config FILE KIND [DEBOUNCE_MS WIDTH_MS LINE]
config() {
  cat >"$1" <<END
state_directory = "$state"
[broker]
host = "localhost"
[identity]
directory = "/data/meter"
[clock]
assume_synchronised = true
[register]
save_seconds = 3600
save_pulses = $save_pulses
END
  channels "$2" "${3:-5}" "${4:-20}" $5 >>"$1"
}

# result SCENARIO SENT COUNTED [GLITCHES REJECTED [LEAST MOST]]: pulses per channel, joined by
# "+". Unless LEAST and MOST are given, all that were sent have to be counted.
result() {
  echo "@result $(echo "$1" | tr ' ' _) $2 ${3:-none} ${4:-0} ${5:-0} $6 $7"
}

# check SCENARIO FILE WORD…: the file contains every word.
check() {
  scenario=$(echo "$1" | tr ' ' _)
  file=$2
  shift 2
  for word in "$@"; do
    if ! grep -q -e "$word" "$file"; then
      echo "@check $scenario FAILED no <$word> in: $(tail -n 3 "$file" | tr '\n' ' ')"
      return
    fi
  done
  echo "@check $scenario ok $(grep -e "$1" "$file" | head -n 1 | cut -c 1-230)"
}

# Waits until N lines are held by agents; a little more, for the filters to know the level.
held() {
  tries=0
  until [ "$(grep -c -e meter-agent -e RPPAL /sys/kernel/debug/gpio)" -ge "$1" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then
      echo "@failed nobody holds the lines: $(tail -n 2 /tmp/log /tmp/out | tr '\n' ' ')"
      poweroff -f
    fi
    sleep 0.1
  done
  sleep 0.3
}

# count FILE SECONDS COMMAND…: what `meter-agent count` prints while COMMAND drives the lines.
count() {
  meter-agent count --config "$1" --seconds "$2" >/tmp/out 2>/tmp/log &
  reading=$!
  shift 2
  held "$lines"
  "$@"
  wait $reading || cat /tmp/log
  counted=$(sort -r /tmp/out | awk '{ print $2 }' | paste -s -d +)
}

# edges FILE COMMAND…: what the edge filter counts and rejects (pulses that were too short).
edges() {
  /bin/edges "$1" >/tmp/out 2>/tmp/log &
  reading=$!
  shift
  held "$lines"
  "$@"
  sleep 1
  kill $reading
  wait $reading || cat /tmp/log
  counted=$(sort -r /tmp/out | tr = ' ' | awk '{ print $3 }' | paste -s -d +)
  # Two edges each; an edge that the filter missed makes the number wrong.
  rejected=$(tr = ' ' </tmp/out | awk '{ sum += $5 / 2 - 1000 * $7 } END { print sum }')
}

# run FILE: starts the agent proper; there is no broker.
run() {
  meter-agent run --config "$1" >/tmp/log 2>&1 &
  agent=$!
  held "$lines"
}

# Pulses of all channels in the newer whole generation of the register.
saved_pulses() {
  cat $state/register/register.0 $state/register/register.1 2>/dev/null | awk '
    $1 == "generation" { sum = 0 } $1 == "channel" { sum += $4 }
    $1 == "crc32" && sum > most { most = sum } END { print most + 0 }'
}

# kills FILE KIND: 37 pulses, of which up to 9 are not saved when the agent is killed; then 13 more.
kills() {
  before=$(saved_pulses)
  run "$1"
  single 37
  sleep 2
  kill -9 $agent
  wait $agent
  check "counts without a broker" /tmp/log "no connection to the broker"
  found=$(saved_pulses)
  result "$2: agent killed, saving every 10" 37 $((found - before)) 0 0 28 37
  run "$1"
  single 13
  sleep 2
  kill $agent
  wait $agent
  result "$2: agent started again, ended" 13 $(($(saved_pulses) - found))
}

# power_cut FILE: pulses until the host cuts the power.
power_cut() {
  run "$1"
  sent=$(saved_pulses)
  while :; do
    single 1
    sent=$((sent + 1))
    echo "@sent $sent $(saved_pulses)"
  done
}

# after_power_cut FILE: the host passes the last that it was told. When it cut, one pulse more
# may have been on its way; those of the last 200 ms and up to 9 others were not saved.
after_power_cut() {
  found=$(saved_pulses)
  least=$((sent - 9 - 3))
  [ $least -ge "$saved" ] || least=$saved
  result "power cut, whole register" "$sent" "$found" 0 0 $least $((sent + 1))
  run "$1"
  single 12
  sleep 2
  kill $agent
  wait $agent
  result "after the power cut" 12 $(($(saved_pulses) - found))
}
