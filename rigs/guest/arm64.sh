# Rig B: the power button of QEMU's Arm board. It pulls line 3 of a PL061 up for 100 ms
# whenever the host asks for it.
lines=1

setup() { :; }

# single N: asks the host for a pulse and waits until it knows that it has begun.
single() {
  for _ in $(seq "$1"); do
    echo @pulse
    read -r _
    sleep 0.2
  done
}

channels() {
  printf '[[channel]]\nname = "import"\nimpulses_per_kwh = 1000\n[channel.gpiocdev]\n'
  printf 'chip = "9030000.pl061"\noffset = 3\nactive = "high"\nbias = "disabled"\n'
  printf 'debounce_ms = %s\nminimum_width_ms = %s\n' "$2" "$3"
}

# Pulses, in the middle of which the date is set an hour ahead, later two hours back.
dates() {
  single 5
  date -s @$(($(date +%s) + 3600)) >/dev/null
  single 5
  date -s @$(($(date +%s) - 7200)) >/dev/null
  single 5
  date -s @$(($(date +%s) + 3600)) >/dev/null
}

phase_1() {
  config /tmp/pulses.toml gpiocdev
  config /tmp/wide.toml gpiocdev 5 150
  edges /tmp/pulses.toml single 20
  result "pulses of 100 ms" 20 "$counted" 0 "$rejected"
  edges /tmp/wide.toml single 10
  result "shorter than minimum_width_ms" 0 "$counted" 10 "$rejected"
  edges /tmp/pulses.toml dates
  result "date set ahead and back" 15 "$counted" 0 "$rejected"
  meter-agent count --config /tmp/pulses.toml --seconds 3 >/tmp/out 2>/tmp/other &
  held 1
  meter-agent count --config /tmp/pulses.toml --seconds 1 >/tmp/log 2>&1
  check "line held by another agent" /tmp/log 9030000.pl061 busy meter-agent
  wait
  modprobe gpio_keys
  sleep 1
  meter-agent count --config /tmp/pulses.toml --seconds 1 >/tmp/log 2>&1
  check "line held by a driver" /tmp/log 9030000.pl061 busy Poweroff
  modprobe -r gpio_keys
  kills /tmp/pulses.toml gpiocdev
  power_cut /tmp/pulses.toml
}

phase_2() {
  config /tmp/pulses.toml gpiocdev
  after_power_cut /tmp/pulses.toml
}
