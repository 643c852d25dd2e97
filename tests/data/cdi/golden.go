// Lines of JSON {"dirs": [], "config": {}, "devices": []} in, {"config": {}} or {"error": ""} out: devices injected into a
// config.json by the Go library; without devices, the config.json as Go writes it.
package main

import (
	"bufio"
	"encoding/json"
	"os"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

type request struct {
	Dirs    []string  `json:"dirs"`
	Config  *oci.Spec `json:"config"`
	Devices []string  `json:"devices"`
}

func answer(r request) map[string]any {
	if len(r.Devices) > 0 {
		cache, err := cdi.NewCache(cdi.WithSpecDirs(r.Dirs...), cdi.WithAutoRefresh(false))
		if err != nil {
			return map[string]any{"error": err.Error()}
		}
		if _, err := cache.InjectDevices(r.Config, r.Devices...); err != nil {
			return map[string]any{"error": err.Error()}
		}
	}
	return map[string]any{"config": r.Config}
}

func main() {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 64<<20)
	output := json.NewEncoder(os.Stdout)
	for input.Scan() {
		var r request
		if err := json.Unmarshal(input.Bytes(), &r); err != nil {
			output.Encode(map[string]any{"error": "request: " + err.Error()})
			continue
		}
		output.Encode(answer(r))
	}
}
