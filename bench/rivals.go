package main

import (
	"cmp"
	"context"
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

//go:embed rivals/nginx.conf
var nginxConfig string

//go:embed rivals/webhook.lua
var luaScript string

//go:embed rivals/express.js
var expressScript string

// startNginx runs nginx as a proxy, with what the plugin does in Lua, or without.
func (e *environment) startNginx(ctx context.Context, name string, lua bool) (*gateway, error) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		return nil, skipped("there is no nginx")
	}
	var modules []string
	if lua {
		for _, module := range []string{"ndk_http_module.so", "ngx_http_lua_module.so"} {
			file := filepath.Join("/usr/lib/nginx/modules", module)
			if _, err := os.Stat(file); err != nil {
				return nil, skipped("there is no %s", file)
			}
			modules = append(modules, file)
		}
	}
	addresses, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(e.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	script := filepath.Join(dir, "webhook.lua")
	if err := os.WriteFile(script, []byte(luaScript), 0o600); err != nil {
		return nil, err
	}
	var config strings.Builder
	if err := template.Must(template.New("").Parse(nginxConfig)).Execute(&config, map[string]any{
		"Dir": dir, "Modules": modules, "Address": addresses[0], "Backend": e.backend, "Script": script, "Path": path,
		"Root": os.Getuid() == 0, "Lua": lua,
	}); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		return nil, err
	}
	args := []string{"-p", dir, "-c", file, "-e", "stderr"}
	test := exec.Command(nginx, append(args, "-t")...) //nolint:gosec // files of the bench
	test.Env = append(os.Environ(), "BUZZBIP_SECRET="+secret)
	if out, err := test.CombinedOutput(); err != nil {
		return nil, skipped("nginx does not take the configuration: %s", strings.TrimSpace(string(out)))
	}
	cmd := exec.Command(nginx, args...) //nolint:gosec // files of the bench
	cmd.Env = test.Env
	g := &gateway{name: name, address: map[string]string{http1: addresses[0]}}
	return g, g.start(ctx, e.dir, cmd)
}

// startExpress runs Express with the function from BuzzBip's documentation.
// Express is where NODE_PATH says, or npm downloads it, if that is allowed.
func (e *environment) startExpress(ctx context.Context) (*gateway, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, skipped("there is no node")
	}
	modules := cmp.Or(e.express, os.Getenv("NODE_PATH"))
	if e.npm && e.express == "" {
		dir := filepath.Join(e.dir, "express")
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		install := exec.CommandContext(ctx, "npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "express") //nolint:gosec // a directory of the bench
		if out, err := install.CombinedOutput(); err != nil {
			return nil, skipped("npm install express: %v\n%s", err, out)
		}
		modules = filepath.Join(dir, "node_modules")
	}
	env := append(os.Environ(), "NODE_PATH="+modules)
	look := exec.Command(node, "-e", "require('express')") //nolint:gosec // from PATH
	look.Env = env
	if look.Run() != nil {
		return nil, skipped("Node.js finds no Express: set NODE_PATH, or use -npm")
	}
	e.express = modules
	addresses, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	script := filepath.Join(e.dir, "express.js")
	if err := os.WriteFile(script, []byte(expressScript), 0o600); err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(addresses[0], ":")
	cmd := exec.Command(node, script, port, e.backend) //nolint:gosec // a file of the bench
	cmd.Env = append(env, "BUZZBIP_SECRET="+secret, "NODE_ENV=production")
	g := &gateway{name: "express", address: map[string]string{http1: addresses[0]}}
	return g, g.start(ctx, e.dir, cmd)
}
