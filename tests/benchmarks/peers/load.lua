-- What wrk sends, to either service. The environment says what:
--   KEY     the API key
--   JOB     check: POST /ratelimit/check | append, history: POST, GET /chat/sessions/{id}/messages
--   CLIENTS client keys that the requests are spread over; 1: one hot bucket
--   IDS     a file of session ids, one a line
--   ORDER   turn: all ids one after another, so that each gets as many; else at random
-- The last line that it prints is the result, as JSON. Times are microseconds.
local job, clients = os.getenv("JOB"), tonumber(os.getenv("CLIENTS") or "1")
local headers = { ["content-type"] = "application/json", ["authorization"] = "Bearer " .. os.getenv("KEY") }
local requests, number = {}, 0

function init()
  math.randomseed(os.time())
  local prefix = wrk.path == "/" and "" or wrk.path
  if job == "check" then
    for client = 1, clients do
      headers["x-client"] = "c" .. client
      requests[client] = wrk.format("POST", prefix .. "/ratelimit/check", headers, '{"cost":1}')
    end
    return
  end
  headers["x-client"] = "c1"
  local message = '{"role":"user","content":"' .. string.rep("hello world ", 10) .. '"}'
  for id in io.lines(os.getenv("IDS")) do
    local path = prefix .. "/chat/sessions/" .. id .. "/messages"
    requests[#requests + 1] = job == "append" and wrk.format("POST", path, headers, message)
      or wrk.format("GET", path .. "?limit=50", headers)
  end
end

if os.getenv("ORDER") == "turn" then
  request = function()
    number = number % #requests + 1
    return requests[number]
  end
else
  request = function() return requests[math.random(#requests)] end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "duration_us": %d, "median_us": %d, "p99_us": %d, "errors": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
